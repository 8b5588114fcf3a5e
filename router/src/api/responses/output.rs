//! The output of a response in the making: the parts that a model says become items, and each step of that an event.

use serde_json::{Value, json};

use super::object::{Content, Item, Status};
use crate::{
    api::common::listen::{Listener, Saying},
    http::json::pieces,
    text::output::Part,
};

/// The items so far; the last one may be open.
#[derive(Default)]
pub(super) struct Output {
    pub items: Vec<Item>,
    open: bool,
    saying: Saying,
}

/// An event's name and its own fields.
pub(super) type Event = (&'static str, Value);

// === impl Output ===

impl Output {
    /// Takes in what was heard.
    pub(super) fn take(&mut self, parts: Vec<Part>, listener: &Listener, events: &mut Vec<Event>) {
        for part in &parts {
            match part {
                Part::Reasoning(text) => {
                    if !matches!(self.current(), Some(Item::Reasoning { .. })) && !text.is_empty() {
                        let content = vec![Content::ReasoningText { text: String::new() }];
                        let id = id("rs_");
                        self.begin(
                            Item::Reasoning { id, summary: [], content, status: Status::InProgress },
                            events,
                        );
                    }
                    self.say(text, "response.reasoning_text.delta", events);
                }
                Part::Content(text) => {
                    if !text.is_empty() {
                        self.message(events);
                    }
                    self.say(text, "response.output_text.delta", events);
                }
                Part::Call { index, name } => self.begin(
                    Item::FunctionCall {
                        id: id("fc_"),
                        call_id: listener.id(*index).to_string(),
                        name: name.clone(),
                        arguments: String::new(),
                        status: Status::InProgress,
                    },
                    events,
                ),
                Part::Arguments { text, .. } => {
                    self.say(text, "response.function_call_arguments.delta", events);
                }
            }
        }
        self.saying.extend(parts, listener);
    }

    /// The end: nothing said is a message without text.
    pub(super) fn end(&mut self, status: Status, events: &mut Vec<Event>) {
        if self.items.is_empty() {
            self.message(events);
        }
        self.close(status, events);
    }

    /// What was said, as templates take it.
    pub(super) fn template(&self) -> Value {
        let Saying { reasoning, content, calls } = &self.saying;
        let mut message = json!({"role": "assistant", "content": content});
        if !reasoning.is_empty() {
            message["reasoning_content"] = reasoning.as_str().into();
        }
        if !calls.is_empty() {
            let calls = calls.iter().map(|call| {
                json!({"id": &*call.id, "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments}})
            });
            message["tool_calls"] = calls.collect();
        }
        message
    }

    fn current(&self) -> Option<&Item> {
        self.items.last().filter(|_| self.open)
    }

    fn message(&mut self, events: &mut Vec<Event>) {
        if matches!(self.current(), Some(Item::Message { .. })) {
            return;
        }
        let content = vec![Content::text(String::new())];
        self.begin(
            Item::Message { id: id("msg_"), status: Status::InProgress, role: "assistant", content },
            events,
        );
    }

    fn begin(&mut self, item: Item, events: &mut Vec<Event>) {
        self.close(Status::Completed, events);
        let (index, mut bare) = (self.items.len(), item.clone());
        let part = bare.take_content();
        events.push(("response.output_item.added", json!({"output_index": index, "item": bare})));
        if let Some(part) = part {
            events.push(("response.content_part.added", within(&item, index, json!({"part": part}))));
        }
        self.items.push(item);
        self.open = true;
    }

    /// Adds to the open item.
    fn say(&mut self, text: &str, name: &'static str, events: &mut Vec<Event>) {
        let index = self.items.len().saturating_sub(1);
        let Some(item) = self.items.last_mut() else { return };
        item.push(text);
        for piece in pieces(text) {
            let delta = match item {
                Item::Message { .. } => json!({"delta": piece, "logprobs": []}),
                _ => json!({"delta": piece}),
            };
            events.push((name, within(item, index, delta)));
        }
    }

    fn close(&mut self, status: Status, events: &mut Vec<Event>) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let index = self.items.len() - 1;
        let Some(item) = self.items.last_mut() else { return };
        item.set_status(status);
        let (name, fields) = match item {
            Item::Message { content, .. } => {
                ("response.output_text.done", json!({"text": content.first(), "logprobs": []}))
            }
            Item::Reasoning { content, .. } => {
                ("response.reasoning_text.done", json!({"text": content.first()}))
            }
            Item::FunctionCall { name, arguments, .. } => {
                ("response.function_call_arguments.done", json!({"name": name, "arguments": arguments}))
            }
        };
        let mut done = within(item, index, fields);
        // The text alone, not the part that it stands in.
        if let Some(part) = done.get("text").and_then(|part| part.get("text")).cloned() {
            done["text"] = part;
        }
        events.push((name, done));
        let part = item.clone().take_content();
        if let Some(part) = part {
            events.push(("response.content_part.done", within(item, index, json!({"part": part}))));
        }
        events.push(("response.output_item.done", json!({"output_index": index, "item": item})));
    }
}

/// Fields of an event about what is in an item.
fn within(item: &Item, index: usize, more: Value) -> Value {
    let mut fields = json!({"item_id": item.id(), "output_index": index});
    if !matches!(item, Item::FunctionCall { .. }) {
        fields["content_index"] = 0.into();
    }
    if let (Value::Object(fields), Value::Object(more)) = (&mut fields, more) {
        fields.extend(more);
    }
    fields
}

fn id(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::new_v4().simple())
}
