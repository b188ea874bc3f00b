//! Base64 as Go's standard decoder reads it: CR and LF are skipped, padding is required, unused bits may be set; the
//! message names the byte at which Go gives up.

/// Decodes, or says where it went wrong in Go's words.
pub fn decode(text: &str) -> Result<Vec<u8>, String> {
    let source: Vec<(usize, u8)> =
        text.bytes().enumerate().filter(|(_, byte)| !matches!(byte, b'\r' | b'\n')).collect();
    let wrong = |at: usize| Err(format!("illegal base64 data at input byte {at}"));
    let mut out = Vec::with_capacity(source.len() / 4 * 3);
    for (index, group) in source.chunks(4).enumerate() {
        let end = index * 4 + group.len();
        let mut bits: u32 = 0;
        let mut symbols = 0;
        for (place, (at, byte)) in group.iter().enumerate() {
            if let Some(value) = symbol(*byte) {
                bits = bits << 6 | u32::from(value);
                symbols += 1;
                continue;
            }
            if *byte != b'=' || place < 2 {
                return wrong(*at);
            }
            let padded = match (place, group.get(3)) {
                (2, Some((_, b'='))) | (3, _) => true,
                (2, Some((other, _))) => return wrong(*other),
                _ => return wrong(text.len()),
            };
            if padded && source.len() > end {
                return wrong(source[end].0);
            }
            break;
        }
        match (symbols, group.len()) {
            (4, _) => out.extend_from_slice(&bits.to_be_bytes()[1..]),
            (3, 4) => out.extend_from_slice(&(bits << 6).to_be_bytes()[1..3]),
            (2, 4) => out.extend_from_slice(&(bits << 12).to_be_bytes()[1..2]),
            // Go names the byte after the last one less what it holds of the unfinished group.
            (held, _) => return wrong(text.len() - held),
        }
    }
    Ok(out)
}

fn symbol(byte: u8) -> Option<u8> {
    Some(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn what_go_takes_is_taken() {
        assert_eq!(decode("").unwrap(), b"");
        assert_eq!(decode("aGVsbG8=").unwrap(), b"hello");
        assert_eq!(decode("aGVs\nbG8=\r\n").unwrap(), b"hello");
        assert_eq!(decode("AB==").unwrap(), [0]);
        assert_eq!(decode("AAAA").unwrap(), [0, 0, 0]);
    }

    #[test]
    fn what_go_refuses_is_refused_at_the_same_byte() {
        for (text, at) in
            [("!!!!", 0), ("AAA", 0), ("aGVs***", 4), ("A=", 1), ("AA=A", 3), ("AA=", 3), ("AA==A", 4), ("AAAAA", 4)]
        {
            assert_eq!(decode(text).unwrap_err(), format!("illegal base64 data at input byte {at}"), "{text}");
        }
    }
}
