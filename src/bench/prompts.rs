//! Request bodies whose prompts no server has seen before.

use hyper::body::Bytes;
use serde_json::{Map, Value, json};

use crate::cli::{BenchArgs, BenchEndpoint, BenchMode};

/// Words that are one token each, with the space before them, in common vocabularies.
const WORDS: &str = "time year people day man thing woman life child world school state family student group \
country problem hand part place case week company system program question work government number night point home \
water room mother area money story fact month lot right study book eye job word business issue side kind head \
house service friend father power hour game line end member law car city community name president team minute \
idea body information back parent face level office door health person art war history party result change \
morning reason research girl moment air teacher force education paper north south river mountain forest ocean \
island summer winter window garden bridge station museum hotel kitchen table chair floor wall mirror letter bottle \
bread milk fish fruit apple sugar salt wine coffee horse sheep tree flower grass leaf stone gold silver iron glass \
cotton engine wheel machine radio phone computer screen camera music dance film sport army police court doctor \
nurse artist king queen driver owner bright clean empty sharp soft sweet quick slow quiet loud deep wide rich \
heavy ready happy carry catch draw drive learn build buy choose write speak listen remember follow travel open \
close begin stop wait reach hold keep bring send show";

/// Tokens that all prompts of `--mode prefix` share.
const PREFIX: usize = 512;

/// SplitMix64: enough for prompts, and a dependency less.
struct Random(u64);

/// The bodies of one load: as many as it has requests.
pub(super) fn bodies(
    args: &BenchArgs,
    model: &str,
    extra: &Map<String, Value>,
    concurrency: usize,
) -> Vec<Bytes> {
    let seed = args.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
    let mut random = Random(seed ^ (concurrency as u64) << 48);
    let words: Vec<_> = WORDS.split_whitespace().collect();
    let own = args.prompt_tokens.unwrap_or(match (args.mode, args.endpoint) {
        (BenchMode::Long, _) => 512,
        (BenchMode::Prefix, _) => 16,
        (BenchMode::Short, BenchEndpoint::Completions) => 32,
        (BenchMode::Short, BenchEndpoint::Chat) => 12, // a template brings about 20 more
    });
    let shared =
        if args.mode == BenchMode::Prefix { random.text(&words, PREFIX) + " " } else { String::new() };
    let count = args.requests.unwrap_or(match concurrency {
        1 => 3,
        2..=16 => 3 * concurrency,
        _ => 2 * concurrency,
    });
    (0..count)
        .map(|_| {
            body(args, model, extra, &format!("{shared}{}", random.text(&words, own))).to_string().into()
        })
        .collect()
}

fn body(args: &BenchArgs, model: &str, extra: &Map<String, Value>, prompt: &str) -> Value {
    let mut body = json!({
        "model": model, "max_tokens": args.max_tokens, "temperature": 0, "stream": true,
        "stream_options": {"include_usage": true},
    });
    match args.endpoint {
        BenchEndpoint::Completions => body["prompt"] = prompt.into(),
        BenchEndpoint::Chat => body["messages"] = json!([{"role": "user", "content": prompt}]),
    }
    if !args.stop_at_eos {
        body["ignore_eos"] = true.into();
    }
    for (name, value) in extra {
        body[name] = value.clone();
    }
    body
}

// === impl Random ===

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn text(&mut self, words: &[&str], count: usize) -> String {
        let pick = |_| words[(self.next() % words.len() as u64) as usize];
        (0..count).map(pick).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::BenchArgs;

    fn prompts(arguments: &[&str]) -> Vec<String> {
        let args = BenchArgs::of(arguments);
        let read = |body: &Bytes| serde_json::from_slice::<Value>(body).unwrap()["prompt"].to_string();
        bodies(&args, "m", &Map::new(), 4).iter().map(read).collect()
    }

    #[test]
    fn prompts_are_distinct_and_never_those_of_another_run() {
        let (first, second) = (prompts(&[]), prompts(&[]));
        let all: std::collections::HashSet<_> = first.iter().chain(&second).collect();
        assert_eq!((first.len(), all.len()), (12, 24));
        assert_eq!(prompts(&["--seed", "7"]), prompts(&["--seed", "7"]));
        assert_eq!(first[0].split(' ').count(), 32);
    }

    #[test]
    fn prefix_prompts_share_their_first_512_words() {
        let prompts = prompts(&["--mode", "prefix", "--prompt-tokens", "8"]);
        let split = |p: &String| p.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(split(&prompts[0]).len(), 520);
        assert_eq!(split(&prompts[0])[..512], split(&prompts[1])[..512]);
        assert_ne!(prompts[0], prompts[1]);
    }

    #[test]
    fn extra_fields_win() {
        let args = BenchArgs::of(&["--endpoint", "chat", "--stop-at-eos"]);
        let extra = serde_json::from_str(r#"{"temperature": 1, "seed": 5}"#).unwrap();
        let body = body(&args, "m", &extra, "hello");
        assert_eq!(body["temperature"], 1);
        assert_eq!(body["seed"], 5);
        assert_eq!(body["messages"][0]["content"], "hello");
        assert_eq!(body.get("ignore_eos"), None);
    }
}
