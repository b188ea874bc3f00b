//! The subset of HCL that policies are written in: `path "x" { capabilities = ["read", ...] }`, comments allowed.
//! Anything else is refused, so that no rule is silently lost.

/// One `path` block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The path with its globs.
    pub path: String,
    /// The capabilities as written.
    pub capabilities: Vec<String>,
}

const CAPABILITIES: [&str; 9] = ["create", "read", "update", "delete", "list", "sudo", "deny", "patch", "scan"];

/// Reads a policy.
pub fn parse(text: &str) -> Result<Vec<Rule>, String> {
    let mut tokens = tokens(text)?.into_iter().peekable();
    let mut rules = Vec::new();
    while let Some(token) = tokens.next() {
        if token != Token::Word("path".into()) {
            return Err(format!("expected a path block, found {token:?}"));
        }
        let Some(Token::Text(path)) = tokens.next() else { return Err("expected a path in quotes".into()) };
        if tokens.next() != Some(Token::Mark('{')) {
            return Err(format!("path \"{path}\": expected {{"));
        }
        let mut capabilities = Vec::new();
        loop {
            match tokens.next() {
                Some(Token::Mark('}')) => break,
                Some(Token::Word(key)) if key == "capabilities" => {
                    if tokens.next() != Some(Token::Mark('=')) || tokens.next() != Some(Token::Mark('[')) {
                        return Err(format!("path \"{path}\": expected = ["));
                    }
                    loop {
                        match tokens.next() {
                            Some(Token::Text(word)) if CAPABILITIES.contains(&word.as_str()) => capabilities.push(word),
                            Some(Token::Text(word)) => {
                                return Err(format!("path \"{path}\": invalid capability \"{word}\""));
                            }
                            Some(Token::Mark(',')) => {}
                            Some(Token::Mark(']')) => break,
                            _ => return Err(format!("path \"{path}\": capabilities do not end")),
                        }
                    }
                }
                other => return Err(format!("path \"{path}\": unexpected {other:?}")),
            }
        }
        rules.push(Rule { path: path.trim_start_matches('/').to_owned(), capabilities });
    }
    Ok(rules)
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Mark(char),
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => {}
            '#' => chars.by_ref().take_while(|c| *c != '\n').for_each(drop),
            '/' if chars.peek() == Some(&'/') => chars.by_ref().take_while(|c| *c != '\n').for_each(drop),
            '"' => {
                let mut word = String::new();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => word.extend(chars.next()),
                        Some(c) if c != '\n' => word.push(c),
                        _ => return Err("literal not terminated".into()),
                    }
                }
                tokens.push(Token::Text(word));
            }
            '{' | '}' | '[' | ']' | '=' | ',' => tokens.push(Token::Mark(c)),
            c if c.is_alphanumeric() || c == '_' => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || *c == '_' || *c == '-') {
                    word.push(c);
                }
                tokens.push(Token::Word(word));
            }
            _ => return Err("illegal char".into()),
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_comments_and_lists_are_read() {
        let text = "# what\npath \"a/+/b*\" {\n  capabilities = [\"read\", \"list\"] // why\n}\npath \"c\" { capabilities = [] }";
        let rules = parse(text).unwrap();
        assert_eq!(rules[0], Rule { path: "a/+/b*".into(), capabilities: vec!["read".into(), "list".into()] });
        assert_eq!(rules[1].capabilities, Vec::<String>::new());
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert_eq!(
            parse("path \"x\" { capabilities = [\"eat\"] }").unwrap_err(),
            "path \"x\": invalid capability \"eat\""
        );
        for text in ["path", "path \"x\"", "path \"x\" {", "key = 1", "path \"x", "path \"x\" { policy = \"read\" }"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
