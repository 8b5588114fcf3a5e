use super::*;
use crate::{
    fixture,
    generation::{Prompt, Sampling, Task},
};

/// A link that takes everything.
#[derive(Clone)]
struct Anywhere;

impl Place for Anywhere {
    fn submit(&self, _: Order) -> bool {
        true
    }

    fn cancel(&self, _: u64, _: u32, _: Option<u32>) {}

    fn lists(&self) -> u64 {
        1
    }

    fn is(&self, _: &Self) -> bool {
        true
    }
}

fn generation() -> Generation {
    Generation {
        id: String::new(),
        task: Task::Generate,
        prompts: vec![Prompt { tokens: vec![97, 98, 99] }],
        n: 1,
        max_tokens: 5,
        stop: Vec::new(),
        include_stop: false,
        ignore_eos: false,
        min_tokens: 0,
        echo: 0,
        logprobs: None,
        grammar: None,
        prediction: Vec::new(),
        shown: Vec::new(),
        sampling: Sampling::default(),
        tenant: String::new(),
        priority: 0,
        session: None,
        cache_salt: String::new(),
        max_cached_tokens: None,
        traceparent: String::new(),
        deadline: None,
    }
}

/// The events of an echo with two scores that come in outputs of so many each, then one token.
fn events(scored: &[usize]) -> Vec<Delta> {
    let model = Model::new(fixture::card(), &fixture::byte_level(&[]), None).unwrap();
    let generation = Generation { echo: u32::MAX, logprobs: Some(0), ..generation() };
    let mut request = Request::new(1, Arc::new(model), &generation, 0);
    assert!(request.place_on(&Anywhere, Instant::now()));
    let mut events = Vec::new();
    for (nth, &count) in scored.iter().enumerate() {
        let mut output =
            SequenceOutput { request: 1, scored: vec![Logprobs::default(); count], ..Default::default() };
        if nth + 1 == scored.len() {
            (output.tokens, output.logprobs) = (vec![100], vec![Logprobs::default()]);
        }
        request.take(output, &mut events);
    }
    events
}

#[test]
fn events_do_not_tell_how_a_prompt_was_cut_into_steps() {
    assert_eq!(events(&[2]).len(), 1);
    assert_eq!(events(&[1, 1]), events(&[2]));
    assert_eq!(events(&[1, 1, 0]), events(&[2]));
    assert_eq!(events(&[2, 0]), events(&[2]));
}

#[test]
fn a_choice_ends_with_what_was_guessed_of_it_in_all_its_steps() {
    let model = Model::new(fixture::card(), &fixture::byte_level(&[]), None).unwrap();
    let mut request = Request::new(1, Arc::new(model), &generation(), 0);
    let mut events = Vec::new();
    // It moves between the two.
    for (attempt, tokens, accepted) in [(0, vec![100, 101], 1), (1, vec![102, 103, 104], 2)] {
        assert!(request.place_on(&Anywhere, Instant::now()));
        let finish = if attempt == 1 { FinishReason::Length } else { FinishReason::Unspecified };
        let drafted = Some(v1::Drafted { tokens: 2, accepted, predicted: attempt == 1 });
        let finish = finish.into();
        let output = SequenceOutput { request: 1, attempt, tokens, finish, drafted, ..Default::default() };
        request.take(output, &mut events);
        request.leave(&Anywhere, true, 3);
    }
    let texts: Vec<_> = events.iter().map(|delta| delta.text.as_str()).collect();
    assert_eq!(texts, ["d", "e", "f", "g", "h"], "an event a token, however many a step gave");
    let (last, before) = events.split_last().unwrap();
    assert!(before.iter().all(|delta| delta.guessed == Guessed::default()));
    assert_eq!((last.guessed.places[0], last.guessed.places[1]), ((2, 2), (1, 2)));
    assert_eq!(last.guessed.predicted, (2, 2));
}

/// Remembers how much time each submission had left.
#[derive(Clone, Default)]
struct Noting(Arc<std::sync::Mutex<Vec<Option<u64>>>>);

impl Place for Noting {
    fn submit(&self, order: Order) -> bool {
        self.0.lock().unwrap().push(order.header.timeout_ms);
        true
    }

    fn cancel(&self, _: u64, _: u32, _: Option<u32>) {}

    fn lists(&self) -> u64 {
        1
    }

    fn is(&self, _: &Self) -> bool {
        true
    }
}

#[test]
fn wherever_it_moves_a_request_has_the_time_that_is_left() {
    let model = Arc::new(Model::new(fixture::card(), &fixture::byte_level(&[]), None).unwrap());
    let (start, millis) = (Instant::now(), Duration::from_millis);
    let generation = Generation { deadline: Some(start + millis(300)), ..generation() };
    let (mut request, link) = (Request::new(1, model, &generation, 0), Noting::default());
    for passed in [5, 120, 300] {
        let now = start + millis(passed);
        assert_eq!(request.is_late(now), passed == 300);
        let (patient, hasty) = (request.deadline(millis(1000), now), request.deadline(millis(10), now));
        assert_eq!((patient, hasty), (start + millis(300), (now + millis(10)).min(start + millis(300))));
        assert!(request.place_on(&link, now));
        request.leave(&link, true, 9);
    }
    assert_eq!(*link.0.lock().unwrap(), [Some(295), Some(180), Some(0)]);
}
