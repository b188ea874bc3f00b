//! JSON pointers: a key may hold `/` and `~`, which a pointer writes as `~1` and `~0` (RFC 6901).

/// The pointer of a key under the section at `above`.
pub(super) fn join(above: &str, key: &str) -> String {
    format!("{above}/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// A segment of a pointer as the key that it stands for.
pub(super) fn unescape(segment: &str) -> String {
    segment.replace("~1", "/").replace("~0", "~")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_goes_into_a_pointer_and_comes_back() {
        for key in ["plain", "a/b", "~", "~1", "/~0/"] {
            let document = serde_json::json!({ "section": { key: 7 } });
            let pointer = join("/section", key);
            assert_eq!(document.pointer(&pointer), Some(&serde_json::json!(7)), "{key}");
            assert_eq!(unescape(pointer.trim_start_matches("/section/")), key);
        }
    }
}
