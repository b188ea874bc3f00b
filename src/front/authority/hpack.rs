//! As much of HPACK (RFC 7541) as it takes to find `:authority` in a header block and to change a character in it.

/// `:authority` in the static table.
const AUTHORITY: usize = 1;
const ESCAPE: u8 = b'%';
const INSTEAD: u8 = b'-';
/// The Huffman codes of the two, six bits each.
const ESCAPE_CODE: u32 = 0x15;
const INSTEAD_CODE: u32 = 0x16;
/// Huffman codes up to 15 bits by length: codes of a length are those below the limit, once shorter ones are ruled out.
/// No character that an escaped path can hold has a longer one.
const LIMITS: [(u32, u32); 10] = [
    (5, 0x0a),
    (6, 0x2e),
    (7, 0x7c),
    (8, 0xfe),
    (10, 0x3fd),
    (11, 0x7fd),
    (12, 0xffc),
    (13, 0x1ffe),
    (14, 0x3ffe),
    (15, 0x7fff),
];

/// Makes `-` of every `%` in each `:authority` that is spelt out in the block, or keeps one that an earlier block spelt
/// out. False when there is nothing to repair and nothing that an earlier repair could have left.
pub(super) fn repair_authority(block: &mut [u8]) -> bool {
    let (mut at, mut repaired, mut spelt_out) = (0, false, false);
    while let Some(&first) = block.get(at) {
        let prefix = match first {
            // A field from a table, whole.
            0x80.. => 7,
            // A field that is remembered.
            0x40.. => 6,
            // A new size of the table.
            0x20.. => 5,
            // A field that is not remembered.
            _ => 4,
        };
        let Some((index, next)) = integer(block, at, prefix) else { break };
        at = next;
        if prefix == 7 || prefix == 5 {
            continue;
        }
        if index == 0 {
            let Some((_, _, end)) = text(block, at) else { break };
            at = end;
        }
        let Some((coded, start, end)) = text(block, at) else { break };
        if index == AUTHORITY {
            spelt_out = true;
            let value = &mut block[start..end];
            repaired |= if coded { repair_coded(value) } else { repair_plain(value) };
        }
        at = end;
    }
    repaired || !spelt_out
}

fn repair_plain(value: &mut [u8]) -> bool {
    let mut repaired = false;
    for byte in value.iter_mut().filter(|byte| **byte == ESCAPE) {
        (*byte, repaired) = (INSTEAD, true);
    }
    repaired
}

fn repair_coded(value: &mut [u8]) -> bool {
    let (mut bit, mut repaired) = (0, false);
    while let Some((code, length)) = symbol(value, bit) {
        if (code, length) == (ESCAPE_CODE, 6) {
            // The two codes differ in their last two bits.
            for offset in [4, 5] {
                let (byte, mask) = ((bit + offset) / 8, 0x80 >> ((bit + offset) % 8));
                if INSTEAD_CODE >> (5 - offset) & 1 == 1 { value[byte] |= mask } else { value[byte] &= !mask }
            }
            repaired = true;
        }
        bit += length;
    }
    repaired
}

/// The code that begins at this bit, and its length; none at the padding, and for characters that no path holds.
fn symbol(value: &[u8], bit: usize) -> Option<(u32, usize)> {
    let left = value.len() * 8 - bit;
    let ahead = (0..15).fold(0, |ahead, offset| {
        let byte = value.get((bit + offset) / 8).copied().unwrap_or(0xff);
        ahead << 1 | u32::from(byte >> (7 - (bit + offset) % 8) & 1)
    });
    let (length, _) = LIMITS.into_iter().find(|(length, limit)| ahead >> (15 - length) < *limit)?;
    (length as usize <= left).then_some((ahead >> (15 - length), length as usize))
}

/// An integer whose first byte has a prefix of so many bits (RFC 7541, section 5.1), and where it ends.
fn integer(block: &[u8], at: usize, prefix: u32) -> Option<(usize, usize)> {
    let most = (1_usize << prefix) - 1;
    let mut value = usize::from(*block.get(at)?) & most;
    let mut at = at + 1;
    if value < most {
        return Some((value, at));
    }
    for shift in [0, 7, 14, 21] {
        let byte = *block.get(at)?;
        at += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

/// A text (section 5.2): whether it is coded, where it begins and where it ends.
fn text(block: &[u8], at: usize) -> Option<(bool, usize, usize)> {
    let coded = *block.get(at)? & 0x80 != 0;
    let (length, start) = integer(block, at, 7)?;
    let end = start.checked_add(length).filter(|end| *end <= block.len())?;
    Some((coded, start, end))
}
