//! Values of the configuration file that have a unit: durations and file modes. Each is a quoted string with one
//! spelling that the schema's `pattern` and the parser both accept, so that CI and the daemon never disagree.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration such as `"2500ms"`, `"30s"`, `"2m"` or `"1h"`: one whole number and one unit. At most 9 digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Span(Duration);

/// A file mode such as `"0660"`: four octal digits, quoted, because YAML reads a bare `0660` as a number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Mode(u32);

/// Why a text is not a value of its unit; the sentence says what would be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnitError {
    /// Not a whole number followed by `ms`, `s`, `m` or `h`.
    #[error("not a duration: write a whole number and one unit, such as \"2500ms\", \"30s\", \"2m\" or \"1h\"")]
    Span,
    /// Not four octal digits that start with 0.
    #[error("not a file mode: write four octal digits in quotes, such as \"0660\"")]
    Mode,
}

/// The pattern of a [`Span`].
pub const SPAN_PATTERN: &str = "^[0-9]{1,9}(ms|s|m|h)$";
/// The pattern of a [`Span`] that is compared with times of whole seconds: milliseconds would be lost.
pub const SECONDS_PATTERN: &str = "^[0-9]{1,9}(s|m|h)$";
/// The pattern of a [`Mode`].
pub const MODE_PATTERN: &str = "^0[0-7]{3}$";
/// The pattern of an address and a port: all that it takes is a [`std::net::SocketAddr`].
pub const ADDRESS_PATTERN: &str = concat!(
    "^(",
    r"((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])",
    r"|\[(",
    "([0-9A-Fa-f]{1,4}:){7}([0-9A-Fa-f]{1,4}|:)",
    "|([0-9A-Fa-f]{1,4}:){6}:[0-9A-Fa-f]{1,4}",
    "|([0-9A-Fa-f]{1,4}:){5}(:[0-9A-Fa-f]{1,4}){1,2}",
    "|([0-9A-Fa-f]{1,4}:){4}(:[0-9A-Fa-f]{1,4}){1,3}",
    "|([0-9A-Fa-f]{1,4}:){3}(:[0-9A-Fa-f]{1,4}){1,4}",
    "|([0-9A-Fa-f]{1,4}:){2}(:[0-9A-Fa-f]{1,4}){1,5}",
    "|[0-9A-Fa-f]{1,4}:(:[0-9A-Fa-f]{1,4}){1,6}",
    "|([0-9A-Fa-f]{1,4}:){1,6}:",
    "|:((:[0-9A-Fa-f]{1,4}){1,7}|:)",
    r")\]",
    "):(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[0-9]{1,4})$",
);

/// What to write where one of these patterns does not fit; `None` for a pattern of somebody else.
pub fn form(pattern: &str) -> Option<&'static str> {
    match pattern {
        SPAN_PATTERN => Some("write a whole number and one unit in one word, such as 2500ms, 30s, 2m or 1h"),
        SECONDS_PATTERN => Some("write whole seconds, minutes or hours in one word, such as 90s, 2m or 1h"),
        MODE_PATTERN => Some("write four octal digits in quotes, such as \"0660\""),
        ADDRESS_PATTERN => Some("write an IP address and a port, such as 127.0.0.1:8081 or \"[::1]:8081\""),
        _ => None,
    }
}

// === impl Span ===

impl Span {
    /// A span of whole milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// A span of whole seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// The span as the standard library's type.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > 9 {
            return Err(UnitError::Span);
        }
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| UnitError::Span)?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(UnitError::Span),
        };
        Ok(Self::from_millis(number * millis))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match millis {
            0 => f.write_str("0s"),
            m if m % 3_600_000 == 0 => write!(f, "{}h", m / 3_600_000),
            m if m % 60_000 == 0 => write!(f, "{}m", m / 60_000),
            m if m % 1_000 == 0 => write!(f, "{}s", m / 1_000),
            m => write!(f, "{m}ms"),
        }
    }
}

// === impl Mode ===

impl Mode {
    /// A mode from its bits; bits above `0o777` are dropped.
    pub const fn new(bits: u32) -> Self {
        Self(bits & 0o777)
    }

    /// The permission bits.
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl FromStr for Mode {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let octal = text.len() == 4 && text.starts_with('0') && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
        if !octal {
            return Err(UnitError::Mode);
        }
        u32::from_str_radix(text, 8).map(Self).map_err(|_| UnitError::Mode)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

// === serde and schema, the same for both ===

macro_rules! quoted {
    ($type:ident, $pattern:ident, $description:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "description": $description })
            }
        }
    };
}

quoted!(Span, SPAN_PATTERN, "A whole number and one unit: ms, s, m or h.");
quoted!(Mode, MODE_PATTERN, "Four octal digits in quotes.");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_and_print_in_one_spelling() {
        for (text, millis) in [("0s", 0), ("2500ms", 2_500), ("30s", 30_000), ("2m", 120_000), ("1h", 3_600_000)] {
            let span: Span = text.parse().expect(text);
            assert_eq!(span, Span::from_millis(millis));
            assert_eq!(span.to_string(), text);
        }
        for text in ["", "30", "s", "1.5s", "-1s", "2 m", "2fortnights", "1234567890s", "1d"] {
            assert_eq!(text.parse::<Span>(), Err(UnitError::Span), "{text}");
        }
    }

    #[test]
    fn modes_are_four_octal_digits() {
        assert_eq!("0660".parse(), Ok(Mode::new(0o660)));
        assert_eq!(Mode::new(0o7).to_string(), "0007");
        for text in ["660", "0888", "1660", "0o660", ""] {
            assert_eq!(text.parse::<Mode>(), Err(UnitError::Mode), "{text}");
        }
    }

    #[test]
    fn what_fits_the_pattern_of_an_address_is_one() {
        use std::net::SocketAddr;
        let schema = serde_json::json!({ "pattern": ADDRESS_PATTERN });
        let pattern = jsonschema::validator_for(&schema).expect("a pattern");
        for (text, good) in [
            ("127.0.0.1:8081", true),
            ("0.0.0.0:0", true),
            ("255.255.255.255:65535", true),
            ("[::1]:8081", true),
            ("[::]:1", true),
            ("[fe80::1]:1", true),
            ("[1:2:3:4:5:6:7:8]:1", true),
            ("[1:2:3:4:5:6:7::]:1", true),
            ("[::2:3:4:5:6:7:8]:1", true),
            ("[1::8]:1", true),
            ("[1:2::7:8]:1", true),
            ("256.0.0.1:1", false),
            ("1.2.3:1", false),
            ("01.2.3.4:1", false),
            ("127.0.0.1:65536", false),
            ("127.0.0.1", false),
            ("::1:80", false),
            ("[:::]:1", false),
            ("[1::2::3]:1", false),
            ("[1:2:3:4:5:6:7:8:9]:1", false),
            ("[12345::]:1", false),
            ("localhost:1", false),
        ] {
            assert_eq!(pattern.is_valid(&text.into()), good, "{text}");
            assert_eq!(text.parse::<SocketAddr>().is_ok(), good, "{text}");
        }
    }
}
