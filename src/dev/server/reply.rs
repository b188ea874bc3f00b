//! Answers as OpenBao spells them: the success envelope, both shapes of errors and empty successes, printed byte for byte
//! as Go's JSON encoder prints them.

use aws_lc_rs::rand;
use serde_json::{Map, Value, json};

/// An answer before it becomes HTTP.
#[derive(Debug, Clone)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// The body; empty for 204.
    pub body: String,
}

/// What a success carries.
#[derive(Debug, Default)]
pub struct Success {
    pub data: Option<Map<String, Value>>,
    pub auth: Option<Value>,
    pub warnings: Vec<String>,
    /// Repeats the data beside the envelope, as some sys paths do.
    pub at_top: bool,
    /// Another status than 200. Such answers are written without the newline at the end.
    pub status: Option<u16>,
}

impl Reply {
    /// 204 without a body.
    pub fn empty() -> Reply {
        Reply { status: 204, body: String::new() }
    }

    /// An error with its text alone: a refusal that a handler returned as an answer.
    pub fn plain(status: u16, text: impl AsRef<str>) -> Reply {
        Reply { status, body: line(&json!({ "errors": [text.as_ref()] })) }
    }

    /// A 400 with its text alone.
    pub fn bad(text: impl AsRef<str>) -> Reply {
        Reply::plain(400, text)
    }

    /// An error printed as go-multierror prints it: a failure that a handler returned as an error.
    pub fn multi(status: u16, text: impl AsRef<str>) -> Reply {
        Reply::plain(status, format!("1 error occurred:\n\t* {}\n\n", text.as_ref()))
    }

    /// An error without a text.
    pub fn blank(status: u16) -> Reply {
        Reply { status, body: line(&json!({ "errors": [] })) }
    }

    /// A JSON body outside the envelope, as the unauthenticated sys paths answer.
    pub fn raw(status: u16, body: &Value) -> Reply {
        Reply { status, body: line(body) }
    }

    /// A success with `data`.
    pub fn data(data: Map<String, Value>) -> Reply {
        Success { data: Some(data), ..Success::default() }.reply()
    }
}

impl Success {
    /// The envelope around this success.
    pub fn reply(self) -> Reply {
        let mut body = Map::new();
        let data = self.data.map(|mut data| {
            data.sort_keys();
            data
        });
        if let (true, Some(data)) = (self.at_top, &data) {
            body.clone_from(data);
        }
        body.insert("request_id".into(), uuid().into());
        body.insert("lease_id".into(), "".into());
        body.insert("renewable".into(), false.into());
        body.insert("lease_duration".into(), 0.into());
        body.insert("data".into(), data.map_or(Value::Null, Value::Object));
        body.insert("wrap_info".into(), Value::Null);
        let warnings = (!self.warnings.is_empty()).then_some(self.warnings);
        body.insert("warnings".into(), warnings.map_or(Value::Null, Value::from));
        body.insert("auth".into(), self.auth.unwrap_or(Value::Null));
        let mut body = line(&Value::Object(body));
        if self.status.is_some() {
            body.pop();
        }
        Reply { status: self.status.unwrap_or(200), body }
    }
}

/// One JSON document as Go writes it: HTML characters escaped, a newline at the end.
fn line(value: &Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => text += &format!("\\u{:04x}", c as u32),
            c => text.push(c),
        }
    }
    text.push('\n');
    text
}

/// A random UUID in the form of OpenBao's request ids.
pub fn uuid() -> String {
    let mut bytes = [0u8; 16];
    fill(&mut bytes);
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// `n` random letters and digits.
pub fn random_text(n: usize) -> String {
    const LETTERS: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut text = String::with_capacity(n);
    while text.len() < n {
        let mut byte = [0u8; 1];
        fill(&mut byte);
        // 248 is the largest multiple of 62 in a byte: above it the choice would not be even.
        if byte[0] < 248 {
            text.push(char::from(LETTERS[usize::from(byte[0]) % LETTERS.len()]));
        }
    }
    text
}

/// Fills `bytes` from the system's random source.
pub fn fill(bytes: &mut [u8]) {
    rand::fill(bytes).expect("the random source of aws-lc does not fail once the process runs");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_two_spellings() {
        assert_eq!(Reply::plain(403, "permission denied").body, "{\"errors\":[\"permission denied\"]}\n");
        assert_eq!(
            Reply::multi(403, "permission denied").body,
            "{\"errors\":[\"1 error occurred:\\n\\t* permission denied\\n\\n\"]}\n"
        );
        assert_eq!(Reply::blank(404).body, "{\"errors\":[]}\n");
    }

    #[test]
    fn html_characters_are_escaped_as_go_escapes_them() {
        assert_eq!(Reply::bad("<nil> & co").body, "{\"errors\":[\"\\u003cnil\\u003e \\u0026 co\"]}\n");
    }

    #[test]
    fn the_envelope_has_its_order_and_sorted_data() {
        let data = json!({ "b": 1, "a": 2 });
        let body = Reply::data(data.as_object().cloned().unwrap()).body;
        let rest = body.split_once(",\"lease_id\"").unwrap().1;
        let want = ":\"\",\"renewable\":false,\"lease_duration\":0,\"data\":{\"a\":2,\"b\":1},";
        assert_eq!(rest, format!("{want}\"wrap_info\":null,\"warnings\":null,\"auth\":null}}\n"));
        assert!(body.starts_with("{\"request_id\":\""));
    }

    #[test]
    fn another_status_comes_without_a_newline() {
        let reply = Success { data: Some(Map::new()), status: Some(207), ..Success::default() }.reply();
        assert_eq!(reply.status, 207);
        assert!(reply.body.ends_with('}'));
    }
}
