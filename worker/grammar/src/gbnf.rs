//! GBNF, llama.cpp's grammar format, to Lark.
//!
//! GBNF knows no lexer: every character is a symbol of its own. Lark's engine is quick where symbols are long,
//! so all that is regular becomes a terminal: a rule that never leads back to itself as a whole, and in
//! the other rules each run of neighbours that is. Inside a terminal nothing is lost; at the border between
//! a terminal and a rule that is none, the longest match wins.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Error,
    grammar::{literal, regex_term},
};

/// The most bytes of a grammar, rules in it, and nested groups.
const MAX_BYTES: usize = 64 << 10;
const MAX_RULES: usize = 2000;
const MAX_DEPTH: usize = 64;
/// The most repetitions that a count may ask for.
const MAX_COUNT: u32 = 2000;

/// An expression.
#[derive(Clone, Debug, PartialEq)]
enum Expr {
    Text(String),
    /// A character class or `.`, as a regular expression.
    Class(String),
    Rule(String),
    /// Alternatives, each a sequence.
    Group(Vec<Vec<Expr>>),
    /// Between so many times and so many; none: no bound.
    Repeat(Box<Expr>, u32, Option<u32>),
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

/// Writes rules as Lark.
struct Writer<'a> {
    rules: &'a BTreeMap<String, Vec<Vec<Expr>>>,
    regular: BTreeSet<&'a str>,
}

/// Lark for a grammar whose rule `root` is the start.
pub(crate) fn to_lark(text: &str) -> Result<String, Error> {
    if text.len() > MAX_BYTES {
        return Err(Error::TooComplex(format!("a grammar of {} bytes; at most {MAX_BYTES}", text.len())));
    }
    let rules = Parser { text, at: 0, depth: 0 }.grammar()?;
    if !rules.contains_key("root") {
        return Err(Error::Invalid("the grammar has no rule named root".to_owned()));
    }
    let writer = Writer { regular: regular(&rules), rules: &rules };
    Ok(writer.write())
}

// === impl Parser ===

impl Parser<'_> {
    fn grammar(mut self) -> Result<BTreeMap<String, Vec<Vec<Expr>>>, Error> {
        let mut rules = BTreeMap::new();
        let mut uses = Vec::new();
        self.space(true);
        while self.peek().is_some() {
            let start = self.at;
            let name = self.name().ok_or_else(|| self.error("expected the name of a rule"))?;
            self.space(false);
            if !self.eat("::=") {
                return Err(self.error("expected ::="));
            }
            self.space(true);
            let rule = self.alternatives(&mut uses)?;
            if !self.ends_line() {
                return Err(self.error("expected the end of the rule"));
            }
            if rules.insert(name.clone(), rule).is_some() || rules.len() > MAX_RULES {
                self.at = start;
                return Err(
                    self.error(&format!("rule {name} is given twice, or there are more than {MAX_RULES}"))
                );
            }
            self.space(true);
        }
        if let Some((name, at)) = uses.into_iter().find(|(name, _)| !rules.contains_key(name)) {
            self.at = at;
            return Err(self.error(&format!("rule {name} is not defined")));
        }
        Ok(rules)
    }

    fn alternatives(&mut self, uses: &mut Vec<(String, usize)>) -> Result<Vec<Vec<Expr>>, Error> {
        let mut alternatives = vec![self.sequence(uses)?];
        loop {
            // An alternative may go on in the next line.
            let before = self.at;
            self.space(true);
            if !self.eat("|") {
                self.at = before;
                return Ok(alternatives);
            }
            self.space(true);
            alternatives.push(self.sequence(uses)?);
        }
    }

    fn sequence(&mut self, uses: &mut Vec<(String, usize)>) -> Result<Vec<Expr>, Error> {
        let mut sequence = Vec::new();
        loop {
            self.space(self.depth > 0);
            let Some(atom) = self.atom(uses)? else { return Ok(sequence) };
            let atom = self.repeated(atom)?;
            sequence.push(atom);
        }
    }

    fn atom(&mut self, uses: &mut Vec<(String, usize)>) -> Result<Option<Expr>, Error> {
        let start = self.at;
        Ok(Some(match self.peek() {
            Some('"') => Expr::Text(self.quoted()?),
            Some('[') => Expr::Class(self.class()?),
            Some('.') => {
                self.at += 1;
                Expr::Class("(?s:.)".to_owned())
            }
            Some('(') => {
                self.at += 1;
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err(self.error("groups are nested too deeply"));
                }
                self.space(true);
                let group = self.alternatives(uses)?;
                self.space(true);
                self.depth -= 1;
                if !self.eat(")") {
                    return Err(self.error("expected )"));
                }
                Expr::Group(group)
            }
            _ => match self.name() {
                None => return Ok(None),
                Some(name) => {
                    // The next rule begins here.
                    let after = self.at;
                    self.space(false);
                    let begins = self.text[self.at..].starts_with("::=");
                    self.at = if begins { start } else { after };
                    if begins {
                        return Ok(None);
                    }
                    uses.push((name.clone(), start));
                    Expr::Rule(name)
                }
            },
        }))
    }

    fn repeated(&mut self, mut atom: Expr) -> Result<Expr, Error> {
        loop {
            let (low, high) = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => self.counts()?,
                _ => return Ok(atom),
            };
            self.at += 1;
            atom = Expr::Repeat(Box::new(atom), low, high);
        }
    }

    /// `{m}`, `{m,}`, `{,n}`, `{m,n}`, up to the brace that closes it.
    fn counts(&mut self) -> Result<(u32, Option<u32>), Error> {
        let rest = &self.text[self.at + 1..];
        let Some((inside, _)) = rest.split_once('}') else { return Err(self.error("expected }")) };
        let number = |text: &str| match text.trim() {
            "" => Some(None),
            digits => digits.parse().ok().filter(|count| *count <= MAX_COUNT).map(Some),
        };
        let counts = match inside.split_once(',') {
            None => number(inside).flatten().map(|count| (count, Some(count))),
            Some((low, high)) => number(low).zip(number(high)).map(|(low, high)| (low.unwrap_or(0), high)),
        };
        let counts = counts.filter(|(low, high)| high.is_none_or(|high| high >= *low));
        let counts =
            counts.ok_or_else(|| self.error(&format!("expected {{m,n}} with numbers up to {MAX_COUNT}")))?;
        self.at += 1 + inside.len();
        Ok(counts)
    }

    fn quoted(&mut self) -> Result<String, Error> {
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.peek() {
                None | Some('\n') => return Err(self.error("a string has no end")),
                Some('"') => {
                    self.at += 1;
                    return Ok(text);
                }
                Some(_) => text.push(self.character()?),
            }
        }
    }

    fn class(&mut self) -> Result<String, Error> {
        self.at += 1;
        let mut class = if self.eat("^") { "[^".to_owned() } else { "[".to_owned() };
        let empty = class.len();
        loop {
            match self.peek() {
                None | Some('\n') => return Err(self.error("a character class has no end")),
                Some(']') if class.len() > empty => {
                    self.at += 1;
                    return Ok(class + "]");
                }
                Some(']') => return Err(self.error("a character class is empty")),
                Some('-') if class.len() > empty && !self.text[self.at..].starts_with("-]") => {
                    self.at += 1;
                    class.push('-');
                }
                Some(_) => {
                    let character = self.character()?;
                    // By number, so that nothing in it means anything.
                    class += &format!("\\x{{{:X}}}", u32::from(character));
                }
            }
        }
    }

    /// One character of a string or a class, its escape undone.
    fn character(&mut self) -> Result<char, Error> {
        let Some(first) = self.peek() else { return Err(self.error("expected a character")) };
        self.at += first.len_utf8();
        if first != '\\' {
            return Ok(first);
        }
        let Some(escape) = self.peek() else { return Err(self.error("an escape has no end")) };
        self.at += escape.len_utf8();
        let digits = match escape {
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            '\\' | '"' | '[' | ']' | '-' | '^' | '/' | '.' => return Ok(escape),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => return Err(self.error(&format!("no such escape: \\{escape}"))),
        };
        let hex = self.text.get(self.at..self.at + digits);
        let code = hex.and_then(|hex| u32::from_str_radix(hex, 16).ok()).and_then(char::from_u32);
        let character = code.ok_or_else(|| self.error(&format!("expected {digits} hexadecimal digits")))?;
        self.at += digits;
        Ok(character)
    }

    fn name(&mut self) -> Option<String> {
        let rest = &self.text[self.at..];
        let end =
            rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_').unwrap_or(rest.len());
        self.at += end;
        (end > 0).then(|| rest[..end].to_owned())
    }

    /// White space and comments, over the end of the line where `lines`.
    fn space(&mut self, lines: bool) {
        while let Some(next) = self.peek() {
            match next {
                '#' => self.at += self.text[self.at..].find('\n').unwrap_or(self.text.len() - self.at),
                ' ' | '\t' => self.at += 1,
                '\r' | '\n' if lines => self.at += 1,
                _ => return,
            }
        }
    }

    fn ends_line(&mut self) -> bool {
        self.space(false);
        matches!(self.peek(), None | Some('\r' | '\n'))
    }

    fn eat(&mut self, text: &str) -> bool {
        let found = self.text[self.at..].starts_with(text);
        self.at += if found { text.len() } else { 0 };
        found
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn error(&self, problem: &str) -> Error {
        let line = self.text[..self.at].matches('\n').count() + 1;
        Error::Invalid(format!("grammar, line {line}: {problem}"))
    }
}

// === Regular rules ===

/// The rules that lead only to regular rules, and so never to themselves.
fn regular(rules: &BTreeMap<String, Vec<Vec<Expr>>>) -> BTreeSet<&str> {
    let mut regular = BTreeSet::new();
    loop {
        let more = rules.iter().filter(|(name, _)| !regular.contains(name.as_str()));
        let more: Vec<&str> = more
            .filter(|(_, rule)| rule.iter().flatten().all(|expr| is_regular(expr, &regular)))
            .map(|(name, _)| name.as_str())
            .collect();
        if more.is_empty() {
            return regular;
        }
        regular.extend(more);
    }
}

fn is_regular(expr: &Expr, regular: &BTreeSet<&str>) -> bool {
    match expr {
        Expr::Text(_) | Expr::Class(_) => true,
        Expr::Rule(name) => regular.contains(name.as_str()),
        Expr::Group(group) => group.iter().flatten().all(|expr| is_regular(expr, regular)),
        Expr::Repeat(expr, ..) => is_regular(expr, regular),
    }
}

// === impl Writer ===

impl Writer<'_> {
    fn write(&self) -> String {
        let mut lark = "start: ".to_owned() + &self.reference("root") + "\n";
        let mut terminals = Vec::new();
        for (name, rule) in self.rules {
            let is_regular = self.regular.contains(name.as_str());
            let sequences: Vec<String> =
                rule.iter().map(|sequence| self.sequence(sequence, is_regular, &mut terminals)).collect();
            lark += &format!("{}: {}\n", self.reference(name), sequences.join(" | "));
        }
        for (number, terminal) in terminals.iter().enumerate() {
            lark += &format!("RUN{number}: {terminal}\n");
        }
        lark
    }

    /// A rule's name in Lark: terminals are in capitals.
    fn reference(&self, name: &str) -> String {
        // Any name is a Lark name in hexadecimal, and two names stay two.
        let hex: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
        match self.regular.contains(name) {
            true => format!("T{}", hex.to_uppercase()),
            false => format!("r{hex}"),
        }
    }

    /// A sequence; outside a terminal, neighbours that are regular become one.
    fn sequence(&self, sequence: &[Expr], in_terminal: bool, terminals: &mut Vec<String>) -> String {
        if sequence.is_empty() {
            return "\"\"".to_owned();
        }
        if in_terminal {
            return sequence
                .iter()
                .map(|expr| self.expr(expr, true, terminals))
                .collect::<Vec<_>>()
                .join(" ");
        }
        let mut written = Vec::new();
        let chunks = sequence.chunk_by(|a, b| is_regular(a, &self.regular) == is_regular(b, &self.regular));
        for run in chunks {
            if is_regular(&run[0], &self.regular) {
                let terminal = self.sequence(run, true, terminals);
                written.push(format!("RUN{}", terminals.len()));
                terminals.push(terminal);
            } else {
                written.extend(run.iter().map(|expr| self.expr(expr, false, terminals)));
            }
        }
        written.join(" ")
    }

    fn expr(&self, expr: &Expr, in_terminal: bool, terminals: &mut Vec<String>) -> String {
        match expr {
            Expr::Text(text) => literal(text),
            Expr::Class(class) => regex_term(class),
            Expr::Rule(name) => self.reference(name),
            Expr::Group(group) => {
                let sequences: Vec<_> =
                    group.iter().map(|sequence| self.sequence(sequence, in_terminal, terminals)).collect();
                format!("({})", sequences.join(" | "))
            }
            Expr::Repeat(_, _, Some(0)) => "\"\"".to_owned(),
            Expr::Repeat(expr, low, high) => {
                let expr = self.expr(expr, in_terminal, terminals);
                // Parentheses, since what is repeated may be repeated itself.
                match (low, high) {
                    (0, None) => format!("({expr})*"),
                    (1, None) => format!("({expr})+"),
                    (0, Some(1)) => format!("({expr})?"),
                    (low, None) => format!("({expr}){{{low},}}"),
                    (low, Some(high)) => format!("({expr}){{{low},{high}}}"),
                }
            }
        }
    }
}
