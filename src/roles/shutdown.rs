//! Ctrl-C and SIGTERM: the first drains, the second ends at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Error;

/// The exit status of a process that was told twice to end.
const TOLD_TWICE: i32 = 130;

/// Cancelled at the first signal.
pub(super) fn on_signal() -> Result<CancellationToken, Error> {
    let listen =
        |kind| signal(kind).map_err(|source| Error::System { doing: "cannot listen for signals", source });
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let first = CancellationToken::new();
    let token = first.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        next().await;
        token.cancel();
        tracing::info!("ending: running answers may finish; another signal ends at once");
        next().await;
        std::process::exit(TOLD_TWICE);
    });
    Ok(first)
}
