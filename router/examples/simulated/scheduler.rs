//! A scheduler without workers: every sequence gets the same words, when it is told.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use volley_proto::{
    MAX_MESSAGE, files_hash,
    transport::Transport,
    v1::{
        FetchModelRequest, FileChunk, FinishReason, Kind, Logprobs, ModelCard, Models, RouterMessage,
        SchedulerHello, SchedulerMessage, SequenceOutput, StepOutput, Submit,
        router_message::Message as Up,
        scheduler_message::Message as Down,
        scheduler_server::{Scheduler, SchedulerServer},
    },
};

use crate::tokenizer;

const WORDS: [&[u8]; 8] = [b" the", b" quick", b" brown", b" fox", b" once", b" more", b", then", b" again"];

/// What a submission gets at once.
#[derive(Clone, Copy)]
pub(crate) enum Answer {
    /// Its first token; more when stepped.
    First,
    /// Its only token.
    Last,
}

/// The scheduler's handle.
#[derive(Clone)]
pub(crate) struct Pretender(Arc<Shared>);

struct Shared {
    answer: Mutex<Answer>,
    live: Mutex<BTreeSet<u64>>,
    steps: AtomicU64,
    /// To the router, once it is here.
    outbound: Mutex<Option<mpsc::Sender<Result<SchedulerMessage, Status>>>>,
    card: ModelCard,
    files: BTreeMap<&'static str, Vec<u8>>,
}

// === impl Pretender ===

impl Pretender {
    /// Starts it; gives its address.
    pub(crate) async fn listen() -> (Self, String) {
        let tokenizer = tokenizer::byte_level(&WORDS);
        let files = BTreeMap::from([
            ("chat_template.jinja", tokenizer::CHAT_TEMPLATE.into()),
            ("tokenizer.json", tokenizer),
        ]);
        let shared = Shared {
            answer: Mutex::new(Answer::First),
            live: Mutex::default(),
            steps: AtomicU64::new(0),
            outbound: Mutex::default(),
            card: ModelCard {
                hash: files_hash(files.iter().map(|(name, content)| (*name, &content[..]))),
                context_length: 2_000_000,
                vocab_size: tokenizer::WORDS + WORDS.len() as u32 + 2,
                stop_tokens: vec![tokenizer::WORDS + WORDS.len() as u32 + 1],
                ..tokenizer::card()
            },
            files,
        };
        let pretender = Self(Arc::new(shared));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let service = SchedulerServer::new(pretender.clone()).max_encoding_message_size(MAX_MESSAGE);
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(Transport::listen_tcp(listener)));
        (pretender, address)
    }

    /// Waits until the router is here.
    pub(crate) async fn linked(&self) {
        while self.0.outbound.lock().unwrap().is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// What submissions get from now on.
    pub(crate) fn answer(&self, answer: Answer) {
        *self.0.answer.lock().unwrap() = answer;
    }

    /// How many sequences go on.
    pub(crate) fn live(&self) -> usize {
        self.0.live.lock().unwrap().len()
    }

    /// A token for everyone.
    pub(crate) fn step(&self) {
        let step = self.0.steps.fetch_add(1, Ordering::Relaxed);
        let live = self.0.live.lock().unwrap();
        let sequences = live.iter().map(|request| output(*request, step, false)).collect();
        self.send(Down::Output(StepOutput { sequences }));
    }

    /// Answers a submission; `submit` is its first chunk, and `prompt` how many tokens there were in all.
    fn submitted(&self, submit: Submit, prompt: usize) {
        let last = matches!(*self.0.answer.lock().unwrap(), Answer::Last);
        if !last {
            self.0.live.lock().unwrap().insert(submit.request);
        }
        let header = submit.header.unwrap_or_default();
        let alternatives = header.sampling.as_ref().and_then(|sampling| sampling.logprobs);
        let scores = header.score.as_ref().map_or(0, |score| prompt - score.from as usize);
        let sequences = header.choices.iter().map(|choice| {
            let mut output = output(submit.request, 0, last);
            (output.choice, output.attempt) = (choice.index, submit.attempt);
            output.logprobs.extend(alternatives.map(logprobs));
            output.scored = vec![logprobs(alternatives.unwrap_or(0)); scores];
            match header.kind() {
                Kind::Embed => output.embedding = vec![0.5; 4],
                Kind::Score => output.tokens.clear(),
                _ => {}
            }
            output
        });
        self.send(Down::Output(StepOutput { sequences: sequences.collect() }));
    }

    fn send(&self, message: Down) {
        let outbound = self.0.outbound.lock().unwrap();
        let message = Ok(SchedulerMessage { message: Some(message) });
        assert!(outbound.as_ref().unwrap().try_send(message).is_ok(), "the router reads too slowly");
    }
}

fn output(request: u64, step: u64, last: bool) -> SequenceOutput {
    let finish = if last { FinishReason::Length } else { FinishReason::Unspecified };
    let word = tokenizer::WORDS + (step % WORDS.len() as u64) as u32;
    SequenceOutput { request, tokens: vec![word], finish: finish.into(), ..SequenceOutput::default() }
}

fn logprobs(alternatives: u32) -> Logprobs {
    let top_tokens = (0..alternatives).collect();
    Logprobs { logprob: -1.0, top_tokens, top_logprobs: vec![-1.0; alternatives as usize] }
}

#[tonic::async_trait]
impl Scheduler for Pretender {
    type ServeStream = ReceiverStream<Result<SchedulerMessage, Status>>;
    type FetchModelStream = tokio_stream::Iter<std::vec::IntoIter<Result<FileChunk, Status>>>;

    async fn serve(
        &self,
        request: Request<Streaming<RouterMessage>>,
    ) -> Result<Response<Self::ServeStream>, Status> {
        let (outbound, messages) = mpsc::channel(1 << 16);
        *self.0.outbound.lock().unwrap() = Some(outbound);
        self.send(Down::Hello(SchedulerHello {
            protocol: volley_proto::PROTOCOL,
            scheduler_id: "pretender".into(),
        }));
        self.send(Down::Models(Models { cards: vec![self.0.card.clone()] }));
        let (mut inbound, this) = (request.into_inner(), self.clone());
        tokio::spawn(async move {
            let mut partial = HashMap::<u64, (Submit, usize)>::new();
            while let Ok(Some(RouterMessage { message: Some(message) })) = inbound.message().await {
                match message {
                    Up::Submit(submit) => {
                        let (request, tokens, last) = (submit.request, submit.prompt.len(), submit.last);
                        let (_, prompt) = partial.entry(request).or_insert((submit, 0));
                        *prompt += tokens;
                        if let Some((first, prompt)) = last.then(|| partial.remove(&request)).flatten() {
                            this.submitted(first, prompt);
                        }
                    }
                    Up::Cancel(cancel) => {
                        partial.remove(&cancel.request);
                        this.0.live.lock().unwrap().remove(&cancel.request);
                    }
                    Up::Hello(_) => {}
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn fetch_model(
        &self,
        _: Request<FetchModelRequest>,
    ) -> Result<Response<Self::FetchModelStream>, Status> {
        let chunk =
            |(name, data): (&&str, &Vec<u8>)| Ok(FileChunk { name: (*name).into(), data: data.clone() });
        let chunks: Vec<_> = self.0.files.iter().map(chunk).collect();
        Ok(Response::new(tokio_stream::iter(chunks)))
    }
}
