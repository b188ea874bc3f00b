//! What is wrong with a file: where it stands, what is there, and a sentence that helps.

use std::fmt;

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// The file, or the environment variable.
    pub file: String,
    /// Line from 1; 0 when the finding is about the file as a whole.
    pub line: usize,
    /// Column from 1; 0 when the finding is about the file as a whole.
    pub column: usize,
    /// The key path, as one writes it: `pipelines[workload-a].socket.mode`.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// The offending value, unless it stands under a key that may bear a secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What to do.
    pub help: String,
}

/// All findings of a load, at least one.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Findings(pub Vec<Finding>);

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(value) = &self.value {
            write!(f, " (found {value})")?;
        }
        write!(f, "\n  help: {}", self.help)
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, finding) in self.0.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            write!(f, "{finding}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Findings {}
