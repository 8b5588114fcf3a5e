//! What `volley serve` prints when it is ready: something to paste.

use std::fmt::Write;

/// What the first lines need to know.
pub(super) struct Banner<'a> {
    /// `http://host:port`.
    pub(super) url: &'a str,
    /// The full model id.
    pub(super) model: &'a str,
    /// Whether the model can chat; else the example completes.
    pub(super) chat: bool,
    /// Whether requests need an API key.
    pub(super) keys: bool,
}

// === impl Banner ===

impl std::fmt::Display for Banner<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { url, model, .. } = self;
        writeln!(f, "Ready.\n")?;
        writeln!(f, "  base URL  {url}/inference/v1  (for an OpenAI SDK; {url}/v1 is the same)")?;
        writeln!(f, "  model     {model}")?;
        writeln!(f, "  API key   {}\n", if self.keys { "one of yours" } else { "any: none is asked for" })?;
        writeln!(f, "{}", self.curl())
    }
}

impl Banner<'_> {
    fn curl(&self) -> String {
        let Self { url, model, .. } = self;
        let mut curl = "curl -N ".to_owned();
        let (path, input) = match self.chat {
            true => (
                "chat/completions",
                r#""messages": [{"role": "user", "content": "What is the capital of Japan?"}]"#,
            ),
            false => ("completions", r#""prompt": "The capital of France is""#),
        };
        if self.keys {
            curl += r#"-H "Authorization: Bearer $VOLLEY_API_KEY" "#;
        }
        // Writing to a string can't fail.
        let _ = write!(
            curl,
            "{url}/inference/v1/{path} -H 'Content-Type: application/json' \
             -d '{{\"model\": \"{model}\", {input}, \"temperature\": 0, \"stream\": true}}'"
        );
        curl
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curl_line_is_one_line_with_valid_json() {
        for (chat, keys) in [(true, false), (false, true)] {
            let banner = Banner { url: "http://127.0.0.1:8000", model: "accounts/a/models/m", chat, keys };
            let text = banner.to_string();
            let line = text.lines().find(|l| l.starts_with("curl")).unwrap();
            let body = line.split_once("-d '").unwrap().1.strip_suffix('\'').unwrap();
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(body["model"], "accounts/a/models/m");
            assert_eq!(body.get("messages").is_some(), chat);
            assert_eq!(line.contains("Authorization"), keys);
        }
    }
}
