//! Server-sent events out of bytes, however they are cut.

/// The part of the stream that has arrived and was not handed out.
#[derive(Default)]
pub(super) struct Sse {
    buffer: Vec<u8>,
    /// Where the next line starts.
    start: usize,
    /// Up to where no line end was found.
    searched: usize,
    data: Option<String>,
    /// The id of the event that arrives.
    arriving: Option<String>,
    /// That of the last whole one that had any.
    id: Option<String>,
}

// === impl Sse ===

impl Sse {
    /// Adds bytes as they came.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The id of the last event that was handed out, if it or one before had any.
    pub(super) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The data of the next whole event. Comments and other fields are passed over.
    pub(super) fn next(&mut self) -> Option<String> {
        loop {
            let rest = &self.buffer[self.searched..];
            let Some(end) = rest.iter().position(|b| *b == b'\n') else {
                self.searched = self.buffer.len();
                return None;
            };
            let end = self.searched + end;
            let line = &self.buffer[self.start..end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let event = if line.is_empty() {
                self.id = self.arriving.take().or(self.id.take());
                self.data.take()
            } else {
                if let Some(data) = line.strip_prefix(b"data:") {
                    let data = String::from_utf8_lossy(data.strip_prefix(b" ").unwrap_or(data));
                    match &mut self.data {
                        None => self.data = Some(data.into_owned()),
                        Some(before) => {
                            before.push('\n');
                            before.push_str(&data);
                        }
                    }
                }
                if let Some(id) = line.strip_prefix(b"id: ") {
                    self.arriving = Some(String::from_utf8_lossy(id).into_owned());
                }
                None
            };
            self.start = end + 1;
            self.searched = self.start;
            if event.is_some() {
                return event;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_that_of_a_whole_event() {
        let mut sse = Sse::default();
        let next = |sse: &mut Sse| (sse.next(), sse.id().map(str::to_owned));
        let event = |data: &str, id: &str| (Some(data.to_owned()), Some(id.to_owned()));
        sse.push(b"id: 1,0\ndata: a\n\ndata: b\n\nid: 2,0\ndata:");
        assert_eq!(next(&mut sse), event("a", "1,0"));
        assert_eq!(next(&mut sse), event("b", "1,0"));
        assert_eq!(next(&mut sse), (None, Some("1,0".to_owned())));
        sse.push(b" c\n\n");
        assert_eq!(next(&mut sse), event("c", "2,0"));
    }

    #[test]
    fn events_are_the_same_however_the_bytes_are_cut() {
        let stream = "data: {\"a\":1}\n\n: a comment\ndata:two\r\ndata: lines\r\n\r\nevent: x\n\ndata: é\n\n"
            .as_bytes();
        let expected = ["{\"a\":1}", "two\nlines", "é"];
        for size in 1..=stream.len() {
            let mut sse = Sse::default();
            let mut events = Vec::new();
            for piece in stream.chunks(size) {
                sse.push(piece);
                events.extend(std::iter::from_fn(|| sse.next()));
            }
            assert_eq!(events, expected, "pieces of {size}");
        }
    }
}
