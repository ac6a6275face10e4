//! Makes new inputs out of those that are known.

/// Longest input.
pub const MAX_BYTES: usize = 64 * 1024;
/// Most changes that one new input differs by.
const MAX_CHANGES: usize = 6;
/// Longest piece that is moved, doubled or taken out.
const MAX_PIECE: usize = 256;
/// Numbers at which lengths, counts and limits go wrong.
const EDGES: [u64; 16] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x1000,
    0x1001,
    0xffff,
    0x40_0000,
    0x7fff_ffff,
    0x8000_0000,
    0x100_0000_0000,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];
/// Texts that mean something to one of the targets.
const WORDS: [&str; 40] = [
    "\"jsonrpc\":\"2.0\",",
    "\"id\":1,",
    "\"id\":null,",
    "\"method\":\"a\",",
    "\"params\":[],",
    "\"result\":null",
    "\"error\":{}",
    "null",
    "true",
    "-1",
    "1e400",
    "1.5e-7",
    "18446744073709551615",
    "-9223372036854775809",
    "\"\\ud800\"",
    "\\u0000",
    "[[[[",
    "]]]]",
    "{\"a\":",
    "}",
    ",",
    "*",
    ".",
    "\n",
    "\0",
    "é",
    "\u{feff}",
    "\u{202e}",
    "T24:60:60Z",
    "+00:00",
    ".123456789Z",
    "\x05READY",
    "\x0bSocket-Type",
    "\x08Identity",
    "\x09SUBSCRIBE",
    "\x06CANCEL",
    "\x04PING",
    "DEALER",
    "SUB",
    "NULL",
];

/// A source of chance that can be repeated: `SplitMix64` by Steele, Lea and Flood.
#[derive(Debug, Clone)]
pub struct Chance(pub u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.next() % bound as u64) as usize }
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// Returns a new input: one of the known ones, changed in a few places. `known` is not empty.
pub fn mutate(chance: &mut Chance, known: &[Vec<u8>]) -> Vec<u8> {
    // What was found last has been tried the least.
    let newest = known.len().saturating_sub(1 + chance.below(16));
    let base = if chance.below(2) == 0 { newest } else { chance.below(known.len()) };
    let mut input = known[base].clone();
    for _ in 0..=chance.below(MAX_CHANGES) {
        change(chance, &mut input, known);
    }
    input.truncate(MAX_BYTES);
    input
}

fn change(chance: &mut Chance, input: &mut Vec<u8>, known: &[Vec<u8>]) {
    let at = chance.below(input.len() + 1);
    let piece = at..(at + chance.below(MAX_PIECE)).min(input.len());
    match chance.below(11) {
        0 => flip(input, at, 1 << chance.below(8)),
        1 => flip(input, at, chance.next() as u8),
        2 => input.insert(at, chance.next() as u8),
        3 => drop(input.drain(piece)),
        4 => input.truncate(at),
        5 => {
            let doubled = input[piece].repeat(1 + chance.below(4));
            insert(input, at, &doubled);
        }
        6 => insert(input, at, chance.pick(&WORDS).as_bytes()),
        7 => overwrite(input, at, chance.pick(&WORDS).as_bytes()),
        8 => {
            let width = *chance.pick(&[1, 2, 4, 8]);
            let number = chance.pick(&EDGES).wrapping_add(chance.below(3) as u64).wrapping_sub(1);
            overwrite(input, at, &number.to_be_bytes()[8 - width..]);
        }
        9 => {
            let other = chance.pick(known).as_slice();
            let from = chance.below(other.len() + 1);
            let taken = other[from..(from + chance.below(MAX_PIECE)).min(other.len())].to_vec();
            insert(input, at, &taken);
        }
        _ => {
            let other = chance.pick(known).as_slice();
            input.truncate(at);
            input.extend_from_slice(&other[chance.below(other.len() + 1)..]);
        }
    }
}

fn flip(input: &mut [u8], at: usize, bits: u8) {
    if let Some(byte) = input.get_mut(at) {
        *byte ^= bits;
    }
}

fn insert(input: &mut Vec<u8>, at: usize, piece: &[u8]) {
    input.splice(at..at, piece.iter().copied());
}

fn overwrite(input: &mut Vec<u8>, at: usize, piece: &[u8]) {
    let end = (at + piece.len()).min(input.len());
    input.splice(at..end, piece.iter().copied());
}
