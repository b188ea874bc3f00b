//! A group by name or number. Names are looked up in `/etc/group`, where sysusers puts them; a directory service is not
//! asked, because it may not be there when a control plane starts.

use super::SocketError;

/// The number of a group.
pub(super) fn resolve(name: &str) -> Result<u32, SocketError> {
    let missing = || SocketError::NoGroup { name: name.to_owned() };
    if let Ok(number) = name.parse() {
        // To the system the highest number is the word for "leave it as it is".
        return if number == u32::MAX { Err(missing()) } else { Ok(number) };
    }
    let table = std::fs::read_to_string("/etc/group").map_err(|_| missing())?;
    find(&table, name).ok_or_else(missing)
}

fn find(table: &str, name: &str) -> Option<u32> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        let number = fields.nth(1)?.parse().ok()?;
        found.then_some(number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let table = "root:x:0:\nbroken\nkms:x:4711:alice,bob\n";
        assert_eq!(find(table, "kms"), Some(4711));
        assert_eq!(find(table, "km"), None);
        assert!(matches!(resolve("1234"), Ok(1234)));
        assert!(matches!(resolve("4294967295"), Err(SocketError::NoGroup { .. })));
        assert!(matches!(resolve("no such group"), Err(SocketError::NoGroup { .. })));
    }
}
