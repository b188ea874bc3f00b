//! The captured bytes of an old API server, cut anywhere, and garbage.

use proptest::prelude::*;

use super::*;

/// The first header block of kube-apiserver 1.30.14, as captured; `:authority` is `%2Frun%2Fopenbao-kms%2Fkms.sock`.
const FIRST: &str = "8386459763b897cc5f5a0750e62d25a93b8b677310ac6e48d36a3f419754586cb6a54584f596a8c675bad2854587ad285d07275f5f8b1d75d0620d263d4c4d65647a8b9acac8b4c7602bb6f2ecff40027465864d833505b11f408e9acac8b0c842d6958b510f21aa9b839bd9ab40899acac8b24d494f6a7f8613efbe21376f";
/// The second, which refers to the first.
const SECOND: &str = "8386c4c3c2c1c0bf7e8613efbefba2b7";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
    frame.extend_from_slice(payload);
    frame
}

/// A connection of an old API server: preface, settings, two calls with a frame of data between.
fn connection(first: &[u8]) -> Vec<u8> {
    let frames = [frame(4, 0, &[]), frame(HEADERS, 4, first), frame(0, 1, &[0; 5]), frame(HEADERS, 4, &bytes(SECOND))];
    [PREFACE, &frames.concat()].concat()
}

/// What comes out when these arrive one after the other.
fn through(parts: &[&[u8]]) -> Vec<u8> {
    let (mut repair, mut out) = (Repair::new(true), Vec::new());
    for part in parts {
        repair.take(part);
        let mut space = vec![0; 1 << 20];
        let mut buf = ReadBuf::new(&mut space);
        repair.hand_on(&mut buf);
        out.extend_from_slice(buf.filled());
    }
    out
}

fn bits(text: &[u8]) -> String {
    text.iter().map(|byte| format!("{byte:08b}")).collect()
}

#[test]
fn the_captured_field_loses_its_escapes_and_nothing_else() {
    let (before, mut after) = (bytes(FIRST), bytes(FIRST));
    assert!(hpack::repair_authority(&mut after));
    assert_eq!(before.len(), after.len());
    // `%` is 010101 and `-` is 010110: the three escapes are the only change.
    let (before, after) = (bits(&before), bits(&after));
    let changed: Vec<_> = before.bytes().zip(after.bytes()).enumerate().filter(|(_, (a, b))| a != b).collect();
    assert_eq!(changed.len(), 6);
    for pair in changed.chunks(2) {
        let at = pair[0].0 - 4;
        assert_eq!((&before[at..at + 6], &after[at..at + 6]), ("010101", "010110"));
    }
    assert!(hpack::repair_authority(&mut bytes(SECOND)), "a reference to what was repaired keeps the repair going");
}

#[test]
fn a_plain_text_is_repaired_too() {
    let mut block = [&[0x82, 0x41, 8][..], b"%2Frun%2", &[0x84]].concat();
    assert!(hpack::repair_authority(&mut block));
    assert_eq!(&block[3..11], b"-2Frun-2");
}

#[test]
fn a_connection_that_needs_nothing_is_looked_at_no_further() {
    let mut repair = Repair::new(true);
    let block = [&[0x83, 0x86, 0x41, 9][..], b"localhost"].concat();
    repair.take(&connection(&block));
    assert_eq!((repair.looks_at, repair.ready), (LooksAt::Nothing, connection(&block).len()));
    let mut other = Repair::new(true);
    other.take(b"GET / HTTP/1.1\r\n");
    assert_eq!((other.looks_at, other.ready), (LooksAt::Nothing, 16));
    let mut off = Repair::new(false);
    off.take(&connection(&bytes(FIRST)));
    assert_eq!(off.held, connection(&bytes(FIRST)));
}

#[test]
fn wherever_the_bytes_are_cut_the_outcome_is_the_same() {
    let stream = connection(&bytes(FIRST));
    let whole = through(&[&stream]);
    assert_eq!(whole.len(), stream.len());
    assert_ne!(whole, stream);
    for cut in 0..stream.len() {
        assert_eq!(through(&[&stream[..cut], &stream[cut..]]), whole, "cut at {cut}");
    }
    let single: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(through(&single), whole);
}

#[test]
fn padding_and_priority_are_stepped_over() {
    let padded = [&[3][..], &[0; 5], &bytes(FIRST), &[0; 3]].concat();
    let stream = [PREFACE, &frame(HEADERS, 4 | PADDED | PRIORITY, &padded)].concat();
    let mut expected = bytes(FIRST);
    hpack::repair_authority(&mut expected);
    let out = through(&[&stream]);
    assert_eq!(&out[PREFACE.len() + FRAME_HEADER + 6..out.len() - 3], expected);
}

proptest! {
    #[test]
    fn garbage_passes_through_without_a_change_of_length(
        garbage in proptest::collection::vec(any::<u8>(), 0..600),
        flags in any::<u8>(),
        cut in 0..600_usize,
    ) {
        let stream = [PREFACE, &frame(HEADERS, flags, &garbage), &garbage].concat();
        let cut = cut.min(stream.len());
        let mut repair = Repair::new(true);
        repair.take(&stream[..cut]);
        repair.take(&stream[cut..]);
        repair.give_up();
        prop_assert_eq!(repair.held.len(), stream.len());
        prop_assert_eq!(repair.ready, stream.len());
    }
}
