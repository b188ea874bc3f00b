//! One row: who asks what, and the answer. `§` in an expected body stands for any run of characters without quotes, commas,
//! brackets and braces, `…` at its beginning for anything at all; `${name}` for a value that an earlier row kept or the runner made.

use std::time::Duration;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// The root token.
    Root,
    /// No token.
    Nobody,
    /// A token given word for word, or kept earlier (`${name}`).
    Token(&'static str),
    /// No token, and a client certificate of this name (`good`, `other`, `foreign`).
    Certificate(&'static str),
    /// A kept token over a connection with a client certificate.
    TokenAndCertificate(&'static str, &'static str),
}

/// The expected body.
#[derive(Debug, Clone)]
pub enum Want {
    /// No body.
    Nothing,
    /// `{"errors":["..."]}` with this text (JSON-escaped as given).
    Plain(String),
    /// The go-multierror print of this text.
    Multi(String),
    /// `{"errors":[]}`.
    Blank,
    /// The envelope with this `data`, no warnings, no `auth`.
    Data(String),
    /// The envelope with this `data`, without the newline at its end: a batch with a status of its own.
    Batch(String),
    /// The envelope with this `data` and these `warnings`.
    Warned(String, String),
    /// The envelope with this `auth`, these `warnings` and null `data`.
    Auth(String, String),
    /// The whole body, without its newline.
    Whole(String),
}

/// One request and its answer.
#[derive(Debug, Clone)]
pub struct Row {
    /// What the row shows; unique.
    pub name: &'static str,
    pub(super) method: &'static str,
    /// Below `/v1/`, or from the root when it begins with a slash.
    pub(super) path: String,
    pub(super) who: Who,
    pub(super) namespace: &'static str,
    pub(super) body: String,
    pub(super) status: u16,
    pub(super) want: Want,
    /// Name and JSON pointer of values for later rows.
    pub(super) keep: Vec<(&'static str, &'static str)>,
    pub(super) wait: Duration,
    /// Only where the unseal key is known.
    pub(super) seals: bool,
}

/// A row by root, 200 and any body until told otherwise.
pub fn row(name: &'static str, method: &'static str, path: &str, body: &str) -> Row {
    Row {
        name,
        method,
        path: path.to_owned(),
        who: Who::Root,
        namespace: "",
        body: body.to_owned(),
        status: 200,
        want: Want::Nothing,
        keep: Vec::new(),
        wait: Duration::ZERO,
        seals: false,
    }
}

impl Row {
    /// Asked by someone else than root.
    pub fn by(self, who: Who) -> Row {
        Row { who, ..self }
    }

    /// Asked by nobody.
    pub fn anonymous(self) -> Row {
        self.by(Who::Nobody)
    }

    /// The same with another method.
    pub fn renamed(self, method: &'static str) -> Row {
        Row { method, ..self }
    }

    /// With a namespace header.
    pub fn within(self, namespace: &'static str) -> Row {
        Row { namespace, ..self }
    }

    /// Keeps a value of the answer.
    pub fn keep(mut self, name: &'static str, pointer: &'static str) -> Row {
        self.keep.push((name, pointer));
        self
    }

    /// Waits before asking.
    pub fn after(self, wait: Duration) -> Row {
        Row { wait, ..self }
    }

    /// Only where the unseal key is known.
    pub fn sealing(self) -> Row {
        Row { seals: true, ..self }
    }

    /// This status.
    pub fn status(self, status: u16) -> Row {
        Row { status, ..self }
    }

    /// This body.
    pub fn want(self, want: Want) -> Row {
        Row { want, ..self }
    }

    /// 204.
    pub fn empty(self) -> Row {
        self.status(204).want(Want::Nothing)
    }

    /// 400 with this text.
    pub fn bad(self, text: &str) -> Row {
        self.plain(400, text)
    }

    /// This status with this text alone.
    pub fn plain(self, status: u16, text: &str) -> Row {
        self.status(status).want(Want::Plain(text.to_owned()))
    }

    /// This status with the go-multierror print of this text.
    pub fn multi(self, status: u16, text: &str) -> Row {
        self.status(status).want(Want::Multi(text.to_owned()))
    }

    /// This status without a text.
    pub fn blank(self, status: u16) -> Row {
        self.status(status).want(Want::Blank)
    }

    /// 200 with this data.
    pub fn data(self, data: &str) -> Row {
        self.want(Want::Data(data.to_owned()))
    }

    /// 200 with this data and these warnings.
    pub fn warned(self, data: &str, warnings: &str) -> Row {
        self.want(Want::Warned(data.to_owned(), warnings.to_owned()))
    }

    /// A batch with a status of its own and these results.
    pub fn batch(self, status: u16, results: &str) -> Row {
        self.status(status).want(Want::Batch(format!("{{\"batch_results\":[{results}]}}")))
    }

    /// This body, whatever the envelope.
    pub fn whole(self, body: &str) -> Row {
        self.want(Want::Whole(body.to_owned()))
    }
}

impl Want {
    /// The body as a pattern.
    pub(super) fn pattern(&self) -> String {
        let envelope = |data: &str, warnings: &str, auth: &str| {
            format!(
                "{{\"request_id\":\"§\",\"lease_id\":\"\",\"renewable\":false,\"lease_duration\":0,\"data\":{data},\"wrap_info\":null,\"warnings\":{warnings},\"auth\":{auth}}}"
            )
        };
        match self {
            Want::Nothing => String::new(),
            Want::Plain(text) => format!("{{\"errors\":[\"{text}\"]}}\n"),
            Want::Multi(text) => format!("{{\"errors\":[\"1 error occurred:\\n\\t* {text}\\n\\n\"]}}\n"),
            Want::Blank => "{\"errors\":[]}\n".into(),
            Want::Data(data) => envelope(data, "null", "null") + "\n",
            Want::Batch(data) => envelope(data, "null", "null"),
            Want::Warned(data, warnings) => envelope(data, warnings, "null") + "\n",
            Want::Auth(auth, warnings) => envelope("null", warnings, auth) + "\n",
            Want::Whole(body) => format!("{body}\n"),
        }
    }
}

/// Whether `text` is what `pattern` says.
pub(super) fn fits(pattern: &str, text: &str) -> bool {
    if let Some(tail) = pattern.strip_prefix('…') {
        let start = tail.split('§').next().unwrap_or_default();
        return text.find(start).is_some_and(|at| fits(tail, &text[at..]));
    }
    let mut parts = pattern.split('§');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    for part in parts {
        let end = rest.find(['"', ',', '[', ']', '{', '}']).unwrap_or(rest.len());
        // The run of free characters ends where the literal part begins; with a literal that begins with a closing mark
        // there is one such place, otherwise the first one counts.
        let Some(at) = (0..=end).find(|at| rest.is_char_boundary(*at) && rest[*at..].starts_with(part)) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn free_values_are_free_and_the_rest_is_not() {
        assert!(fits("{\"a\":§,\"b\":\"§\"}", "{\"a\":12,\"b\":\"\"}"));
        assert!(!fits("{\"a\":§}", "{\"a\":12,\"b\":1}"));
        assert!(!fits("abc", "abcd") && !fits("abcd", "abc"));
        assert!(fits("v1:§\"", "v1:x+/=\""));
        assert!(fits("…\"b\":§}", "{\"a\":[],\"b\":2}"));
    }
}
