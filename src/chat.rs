//! `volley chat`: a conversation with a server, in the terminal.

use std::{
    io::{BufRead, IsTerminal, Write},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    cli::ChatArgs,
    client::{Error, Server, Usage},
};

/// A conversation. History grows until the server says that it is too long; `/new` starts over.
struct Chat {
    server: Server,
    model: String,
    args: ChatArgs,
    history: Vec<Value>,
    terminal: bool,
}

/// Talks until the input ends.
pub(crate) async fn run(args: ChatArgs) -> Result<(), Error> {
    let server = Server::parse(&args.url, args.api_key.clone())?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => server.first_model().await?,
    };
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if terminal {
        println!("{model} at {server}; /new starts over, Ctrl-C stops an answer, Ctrl-D ends");
    }
    let mut chat = Chat { server, model, args, history: Vec::new(), terminal };
    chat.start_over();
    let mut lines = lines();
    loop {
        chat.show("> ");
        let line = tokio::select! {
            line = lines.recv() => line,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(line) = line else { break };
        match line.trim() {
            "" => {}
            "/new" => chat.start_over(),
            command if chat.terminal && command.starts_with('/') => {
                eprintln!("no command {command}; /new starts over, Ctrl-D ends");
            }
            text => {
                let said = chat.turn(text).await;
                match said {
                    Err(error) if chat.terminal => eprintln!("{error}"),
                    said => said?,
                }
            }
        }
    }
    if chat.terminal {
        println!();
    }
    Ok(())
}

/// Lines of stdin. A thread reads them: a blocked read can't be taken back, so it must not hold up the exit.
fn lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

// === impl Chat ===

impl Chat {
    fn start_over(&mut self) {
        let system = self.args.system.iter().map(|text| json!({"role": "system", "content": text}));
        self.history = system.collect();
    }

    /// Says something and shows the answer as it comes. A turn that failed leaves no trace in the history.
    async fn turn(&mut self, text: &str) -> Result<(), Error> {
        self.history.push(json!({"role": "user", "content": text}));
        let (answer, start) = (self.answer(), Instant::now());
        let (answer, usage) = tokio::select! {
            answer = answer => match answer {
                Ok(answer) => answer,
                Err(error) => {
                    self.history.pop();
                    return Err(error);
                }
            },
            _ = tokio::signal::ctrl_c() => {
                self.history.pop();
                println!();
                return Ok(());
            }
        };
        self.history.push(json!({"role": "assistant", "content": answer}));
        println!();
        if let (true, Some(usage)) = (self.terminal, usage) {
            println!("\x1b[2m{}\x1b[0m", summary(usage, start.elapsed()));
        }
        Ok(())
    }

    async fn answer(&self) -> Result<(String, Option<Usage>), Error> {
        let mut body = json!({
            "model": self.model, "messages": self.history, "stream": true,
            "stream_options": {"include_usage": true},
        });
        if let Some(tokens) = self.args.max_tokens {
            body["max_tokens"] = tokens.into();
        }
        if let Some(temperature) = self.args.temperature {
            body["temperature"] = temperature.into();
        }
        let mut stream = self.server.stream("chat/completions", body.to_string().into(), None).await?;
        let (mut answer, mut usage) = (String::new(), None);
        while let Some((text, counted)) = stream.next(|c| (c.text().to_owned(), c.usage)).await? {
            write_now(&text);
            answer += &text;
            usage = counted.or(usage);
        }
        Ok((answer, usage))
    }

    fn show(&self, text: &str) {
        if self.terminal {
            write_now(text);
        }
    }
}

fn summary(usage: Usage, time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let speed = usage.completion_tokens as f64 / seconds;
    let Usage { prompt_tokens, completion_tokens } = usage;
    format!("{prompt_tokens} + {completion_tokens} tokens, {seconds:.1} s, {speed:.0} tok/s")
}

/// Shows text without waiting for the end of the line. A closed stdout is noticed at the next println.
fn write_now(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
