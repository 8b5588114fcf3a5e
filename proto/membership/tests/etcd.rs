//! Membership against a real etcd.
#![allow(clippy::unwrap_used)] // helpers of a test are part of it

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::sync::watch;
use volley_membership::{DEFAULT_PREFIX, Etcd, Member, Membership, Registration, Role};

/// An etcd of the test's own. Stops when dropped.
struct Server {
    data: TempDir,
    client: u16,
    peer: u16,
    child: Option<Child>,
}

impl Server {
    /// Chooses ports and a data directory; nothing runs yet.
    fn prepare() -> Self {
        let ports = [0, 0].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let [client, peer] = ports.map(|listener| listener.local_addr().unwrap().port());
        Self { data: TempDir::new().unwrap(), client, peer, child: None }
    }

    fn start(&mut self) {
        let (client, peer) = (self.endpoint(), format!("http://127.0.0.1:{}", self.peer));
        let child = Command::new("etcd")
            .args(["--name", "test", "--log-level", "error"])
            .arg("--data-dir")
            .arg(self.data.path())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}")])
            .stdout(Stdio::null())
            .spawn();
        self.child = Some(child.expect(
            "this test needs etcd: apt-get install -y --no-install-recommends etcd-server etcd-client",
        ));
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    async fn connect(&self) -> Etcd {
        Etcd::connect(&[self.endpoint()], DEFAULT_PREFIX).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn started() -> Server {
    let mut server = Server::prepare();
    server.start();
    server
}

fn member(id: &str) -> Member {
    Member { id: id.into(), address: format!("http://{id}:1"), model: "m".into() }
}

async fn register(etcd: &Etcd, role: Role, id: &str) -> Registration {
    etcd.register(role, member(id)).await.unwrap()
}

/// Waits until `holds`; the limit only turns a hang into a failure.
async fn until<T>(receiver: &mut watch::Receiver<T>, holds: impl FnMut(&T) -> bool) {
    let wait = tokio::time::timeout(Duration::from_secs(60), receiver.wait_for(holds)).await;
    drop(wait.expect("it never happened").expect("the view ended"));
}

#[tokio::test]
async fn a_member_is_seen_while_it_is_registered() {
    let server = started();
    let (here, there) = (server.connect().await, server.connect().await);
    let mut seen = there.members(Role::Worker);
    let first = register(&here, Role::Worker, "w1").await;
    until(&mut seen, |members| members.get("w1") == Some(&member("w1"))).await;
    let second = register(&here, Role::Worker, "w2").await;
    until(&mut seen, |members| members.len() == 2).await;
    first.revoke().await;
    until(&mut seen, |members| members.keys().eq(["w2"])).await;
    drop(second);
    until(&mut seen, |members| members.is_empty()).await;
    assert!(there.members(Role::Scheduler).borrow().is_empty());
}

#[tokio::test]
async fn of_eight_racers_one_claims_a_worker() {
    let server = started();
    let etcd = std::sync::Arc::new(server.connect().await);
    let (mut workers, mut claims) = (etcd.members(Role::Worker), etcd.claims());
    let worker = register(&etcd, Role::Worker, "w").await;
    until(&mut workers, |members| members.contains_key("w")).await;
    let racers = (0..8).map(|i| {
        let etcd = etcd.clone();
        tokio::spawn(async move {
            let scheduler = register(&etcd, Role::Scheduler, &format!("s{i}")).await;
            let claim = etcd.claim("w", &scheduler).await.unwrap();
            (scheduler, claim)
        })
    });
    let racers: Vec<_> = racers.collect();
    let (mut winners, mut losers) = (vec![], vec![]);
    for racer in racers {
        match racer.await.unwrap() {
            (scheduler, Some(claim)) => winners.push((scheduler, claim)),
            (scheduler, None) => losers.push(scheduler),
        }
    }
    assert_eq!((winners.len(), losers.len()), (1, 7));
    let (winner, claim) = winners.remove(0);
    assert_eq!(claim.scheduler, winner.id);
    until(&mut claims, |claims| claims.get("w") == Some(&claim)).await;

    // The claim goes with its owner's lease; the next one has a higher revision.
    winner.revoke().await;
    until(&mut claims, |claims| claims.is_empty()).await;
    let next = etcd.claim("w", &losers[0]).await.unwrap().unwrap();
    assert!(next.revision > claim.revision);
    etcd.release("w", &claim).await.unwrap();
    until(&mut claims, |claims| claims.get("w") == Some(&next)).await;
    etcd.release("w", &next).await.unwrap();
    until(&mut claims, |claims| claims.is_empty()).await;

    worker.revoke().await;
    until(&mut workers, |members| members.is_empty()).await;
    assert_eq!(etcd.claim("w", &losers[0]).await.unwrap(), None, "a worker that is gone can't be claimed");
}

#[tokio::test]
async fn parts_may_start_before_etcd() {
    let mut server = Server::prepare();
    let etcd = server.connect().await;
    let mut seen = etcd.members(Role::Worker);
    let worker = register(&etcd, Role::Worker, "w").await;
    assert!(seen.borrow_and_update().is_empty());
    server.start();
    until(&mut seen, |members| members.contains_key("w")).await;
    worker.revoke().await;
    until(&mut seen, |members| members.is_empty()).await;
}

#[tokio::test]
async fn the_view_outlives_etcd_and_goes_on_when_it_is_back() {
    let mut server = started();
    let etcd = server.connect().await;
    let (mut seen, mut claims) = (etcd.members(Role::Worker), etcd.claims());
    let _first = register(&etcd, Role::Worker, "w1").await;
    let scheduler = register(&etcd, Role::Scheduler, "s").await;
    until(&mut seen, |members| members.len() == 1).await;
    let claim = etcd.claim("w1", &scheduler).await.unwrap().unwrap();
    until(&mut claims, |claims| claims.contains_key("w1")).await;

    server.kill();
    let failed = etcd.claim("w1", &scheduler).await;
    assert!(failed.is_err(), "a claim isn't answered from memory");
    assert_eq!(seen.borrow().len(), 1, "the last known view stays");
    assert_eq!(claims.borrow().get("w1"), Some(&claim));

    server.start();
    let _second = register(&etcd, Role::Worker, "w2").await;
    until(&mut seen, |members| members.keys().eq(["w1", "w2"])).await;
    assert_eq!(
        etcd.claim("w1", &scheduler).await.unwrap(),
        Some(claim),
        "the lease was kept: the claim is still this scheduler's"
    );
}

#[tokio::test]
async fn a_lost_lease_is_replaced() {
    let mut server = started();
    let etcd = server.connect().await;
    let mut seen = etcd.members(Role::Worker);
    let _worker = register(&etcd, Role::Worker, "w").await;
    until(&mut seen, |members| members.len() == 1).await;
    // Another data directory: lease, key and revisions are gone.
    server.kill();
    server.data = TempDir::new().unwrap();
    server.start();
    let other = server.connect().await;
    let mut fresh = other.members(Role::Worker);
    until(&mut fresh, |members| members.contains_key("w")).await;
    // The old view follows the new history too.
    let _late = register(&other, Role::Worker, "late").await;
    until(&mut seen, |members| members.keys().eq(["late", "w"])).await;
}
