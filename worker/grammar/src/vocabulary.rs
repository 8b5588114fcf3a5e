//! The table from token id to bytes: what a token says, without a look at its neighbours.

use tokenizers::{DecoderWrapper, PreTokenizerWrapper, Tokenizer};

use crate::Error;

/// Every token's bytes.
pub struct Vocabulary {
    bytes: Vec<u8>,
    /// Where each token's bytes start; one entry more than there are tokens.
    starts: Vec<u32>,
    is_special: Vec<bool>,
    special: Vec<u32>,
    leading_space: bool,
}

/// How the vocabulary writes bytes as characters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Spelling {
    /// GPT-2's alphabet: one printable character per byte.
    byte_level: bool,
    /// SentencePiece: this character is a space.
    space: Option<char>,
    /// SentencePiece: `<0x0A>` is a byte.
    byte_fallback: bool,
    /// A text's first token starts with a space that is not in the text.
    leading_space: bool,
}

// === impl Vocabulary ===

impl Vocabulary {
    /// Of a tokenizer.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let spelling = Spelling::of(tokenizer);
        let alphabet = byte_level_alphabet();
        let added = tokenizer.get_added_tokens_decoder();
        let vocabulary = tokenizer.get_vocab(true);
        let size = vocabulary.values().max().map_or(0, |last| *last as usize + 1);
        let mut names = vec![""; size];
        for (name, id) in &vocabulary {
            names[*id as usize] = name;
        }
        let mut table = Self {
            bytes: Vec::with_capacity(size * 6),
            starts: Vec::with_capacity(size + 1),
            is_special: vec![false; size],
            special: Vec::new(),
            leading_space: spelling.leading_space,
        };
        for (id, name) in (0..).zip(&names) {
            table.starts.push(table.bytes.len() as u32);
            match added.get(&id) {
                Some(token) => {
                    table.is_special[id as usize] = token.special;
                    table.special.extend(token.special.then_some(id));
                    table.bytes.extend_from_slice(token.content.as_bytes());
                }
                None => spelling.push_bytes(name, &alphabet, &mut table.bytes),
            }
        }
        table.starts.push(table.bytes.len() as u32);
        table
    }

    /// Of a tokenizer.json.
    pub fn from_json(file: &[u8]) -> Result<Self, Error> {
        let tokenizer = Tokenizer::from_bytes(file);
        Ok(Self::new(&tokenizer.map_err(|error| Error::Broken(format!("tokenizer.json: {error}")))?))
    }

    /// A token's bytes; a special token's are its name. Empty when there is no such token.
    pub fn bytes(&self, id: u32) -> &[u8] {
        match self.starts.get(id as usize..id as usize + 2) {
            Some([start, end]) => &self.bytes[*start as usize..*end as usize],
            _ => &[],
        }
    }

    /// What a token adds to generated text: nothing if it is special.
    pub fn text(&self, id: u32) -> &[u8] {
        if self.is_special(id) { &[] } else { self.bytes(id) }
    }

    /// Whether a token is special: it steers and says nothing.
    pub fn is_special(&self, id: u32) -> bool {
        self.is_special.get(id as usize).copied().unwrap_or(false)
    }

    /// The special token of that name.
    pub fn special(&self, name: &str) -> Option<u32> {
        self.special.iter().copied().find(|id| self.bytes(*id) == name.as_bytes())
    }

    /// Whether the space that starts a text's first token is not in the text.
    pub fn leading_space(&self) -> bool {
        self.leading_space
    }
}

// === impl Spelling ===

impl Spelling {
    fn of(tokenizer: &Tokenizer) -> Self {
        let mut spelling = Self::default();
        if let Some(decoder) = tokenizer.get_decoder() {
            spelling.read_decoder(decoder);
        } else if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            spelling.read_pre_tokenizer(pre_tokenizer);
        }
        spelling
    }

    fn read_decoder(&mut self, decoder: &DecoderWrapper) {
        use tokenizers::pre_tokenizers::metaspace::PrependScheme;
        match decoder {
            DecoderWrapper::ByteLevel(_) => self.byte_level = true,
            DecoderWrapper::ByteFallback(_) => self.byte_fallback = true,
            DecoderWrapper::Metaspace(metaspace) => {
                self.space = Some(metaspace.get_replacement());
                self.leading_space = metaspace.get_prepend_scheme() != PrependScheme::Never;
            }
            // In a SentencePiece decoder these two are `▁` → space, and the first one cut.
            DecoderWrapper::Replace(_) => self.space = Some('▁'),
            DecoderWrapper::Strip(strip) => self.leading_space |= strip.content == ' ' && strip.start > 0,
            DecoderWrapper::Sequence(sequence) => {
                sequence.get_decoders().iter().for_each(|decoder| self.read_decoder(decoder));
            }
            DecoderWrapper::BPE(_) | DecoderWrapper::WordPiece(_) | DecoderWrapper::CTC(_) => {}
            DecoderWrapper::Fuse(_) => {}
        }
    }

    fn read_pre_tokenizer(&mut self, pre_tokenizer: &PreTokenizerWrapper) {
        match pre_tokenizer {
            PreTokenizerWrapper::ByteLevel(_) => self.byte_level = true,
            PreTokenizerWrapper::Metaspace(metaspace) => self.space = Some(metaspace.get_replacement()),
            PreTokenizerWrapper::Sequence(sequence) => {
                sequence.as_ref().iter().for_each(|one| self.read_pre_tokenizer(one));
            }
            _ => {}
        }
    }

    fn push_bytes(&self, name: &str, alphabet: &[Option<u8>], bytes: &mut Vec<u8>) {
        if self.byte_level {
            let start = bytes.len();
            for c in name.chars() {
                match alphabet.get(c as usize).copied().flatten() {
                    Some(byte) => bytes.push(byte),
                    None => {
                        // Not written in the alphabet: the name is the text.
                        bytes.truncate(start);
                        bytes.extend_from_slice(name.as_bytes());
                        return;
                    }
                }
            }
        } else if let Some(byte) = self.byte_fallback.then(|| fallback_byte(name)).flatten() {
            bytes.push(byte);
        } else {
            let mut buffer = [0; 4];
            for c in name.chars() {
                let c = if Some(c) == self.space { ' ' } else { c };
                bytes.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes());
            }
        }
    }
}

/// `<0x0A>` → 10.
fn fallback_byte(name: &str) -> Option<u8> {
    let hex = name.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// GPT-2's alphabet by character: printable Latin-1 stands for itself, the other bytes follow from U+0100 on.
fn byte_level_alphabet() -> Vec<Option<u8>> {
    let mut alphabet = vec![None; 0x200];
    let mut next = 0x100;
    for byte in 0..=255_u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let c = if printable { usize::from(byte) } else { next };
        next += usize::from(!printable);
        alphabet[c] = Some(byte);
    }
    alphabet
}
