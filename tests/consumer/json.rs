// SPDX-License-Identifier: MIT OR Apache-2.0

//! As much JSON as a reference needs: nothing lenient, numbers as f64, and no surrogate pairs in strings.

use std::collections::BTreeMap;

/// A reference nests four deep; the limit keeps a hostile file from using up the stack.
const MAX_DEPTH: usize = 32;

pub enum Json {
    Null,
    Bool,
    Number(f64),
    String(String),
    Array(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

impl Json {
    pub fn parse(text: &str) -> Result<Json, String> {
        let mut parser = Parser { text, at: 0 };
        let value = parser.value(0)?;
        parser.skip_whitespace();
        if parser.at < text.len() {
            return Err(parser.error("something after the end of the document"));
        }
        Ok(value)
    }

    pub fn get(&self, key: &str) -> Option<&Json> {
        match self {
            Json::Object(members) => members.get(key),
            _ => None,
        }
    }

    pub fn array(&self, key: &str) -> Result<&[Json], String> {
        match self.get(key) {
            Some(Json::Array(items)) => Ok(items),
            _ => Err(format!("no array `{key}`")),
        }
    }

    pub fn string(&self, key: &str) -> Result<&str, String> {
        match self.get(key) {
            Some(Json::String(text)) => Ok(text),
            _ => Err(format!("no string `{key}`")),
        }
    }

    /// Below 2^53, where every whole number is an f64.
    pub fn integer(&self, key: &str) -> Result<u64, String> {
        match self.get(key) {
            Some(Json::Number(x)) if *x >= 0.0 && *x < 9007199254740992.0 && x.fract() == 0.0 => Ok(*x as u64),
            _ => Err(format!("no non-negative integer `{key}`")),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    /// In bytes. It stops at ASCII bytes alone, and those are character boundaries: slicing `text` there is safe.
    at: usize,
}

impl Parser<'_> {
    fn error(&self, what: &str) -> String {
        format!("line {}: {what}", 1 + self.text[..self.at].matches('\n').count())
    }

    fn skip_while(&mut self, wanted: impl Fn(u8) -> bool) -> usize {
        let length = self.text[self.at..].bytes().take_while(|&byte| wanted(byte)).count();
        self.at += length;
        length
    }

    fn skip_whitespace(&mut self) {
        self.skip_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
    }

    /// Takes `token` if it comes next.
    fn take(&mut self, token: &str) -> bool {
        let found = self.text[self.at..].starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        self.take(token).then_some(()).ok_or_else(|| self.error(&format!("expected `{token}`")))
    }

    fn value(&mut self, depth: usize) -> Result<Json, String> {
        if depth > MAX_DEPTH {
            return Err(self.error("nested too deep"));
        }
        self.skip_whitespace();
        match self.text.as_bytes().get(self.at) {
            Some(b'{') => self.object(depth),
            Some(b'[') => {
                let mut items = Vec::new();
                self.list("[", "]", |parser| parser.value(depth + 1).map(|item| items.push(item)))?;
                Ok(Json::Array(items))
            }
            Some(b'"') => self.string().map(Json::String),
            Some(b'n') => self.expect("null").map(|()| Json::Null),
            Some(b't') => self.expect("true").map(|()| Json::Bool),
            Some(b'f') => self.expect("false").map(|()| Json::Bool),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => Err(self.error("expected a value")),
        }
    }

    fn list<F>(&mut self, open: &str, close: &str, mut item: F) -> Result<(), String>
    where
        F: FnMut(&mut Self) -> Result<(), String>,
    {
        self.expect(open)?;
        self.skip_whitespace();
        if self.take(close) {
            return Ok(());
        }
        loop {
            item(self)?;
            self.skip_whitespace();
            if self.take(close) {
                return Ok(());
            }
            self.expect(",")?;
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json, String> {
        let mut members = BTreeMap::new();
        self.list("{", "}", |parser| {
            parser.skip_whitespace();
            let key = parser.string()?;
            parser.skip_whitespace();
            parser.expect(":")?;
            match members.insert(key, parser.value(depth + 1)?) {
                None => Ok(()),
                Some(_) => Err(parser.error("the same key twice in one object")),
            }
        })?;
        Ok(Json::Object(members))
    }

    fn string(&mut self) -> Result<String, String> {
        let mut text = String::new();
        self.expect("\"")?;
        loop {
            let start = self.at;
            self.skip_while(|byte| byte != b'"' && byte != b'\\' && byte >= b' ');
            text.push_str(&self.text[start..self.at]);
            if self.take("\"") {
                return Ok(text);
            }
            self.expect("\\").map_err(|_| self.error("a string does not end"))?;
            text.push(self.escape().ok_or_else(|| self.error("an escape that is not read here"))?);
        }
    }

    fn escape(&mut self) -> Option<char> {
        if self.take("u") {
            // The digits are checked because from_str_radix takes a sign as well.
            let digits = self.text.get(self.at..self.at + 4).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
            self.at += 4;
            return char::from_u32(u32::from_str_radix(digits, 16).ok()?);
        }
        let meant = match self.text.as_bytes().get(self.at)? {
            plain @ (b'"' | b'\\' | b'/') => char::from(*plain),
            b'b' => '\x08',
            b'f' => '\x0c',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            _ => return None,
        };
        self.at += 1;
        Some(meant)
    }

    /// The grammar is checked here because Rust's own parser takes more than JSON does: "+1", "01", "1.".
    fn number(&mut self) -> Result<Json, String> {
        let start = self.at;
        self.take("-");
        if !self.take("0") {
            self.digits()?;
        }
        if self.take(".") {
            self.digits()?;
        }
        if self.take("e") || self.take("E") {
            let _signed = self.take("+") || self.take("-");
            self.digits()?;
        }
        match self.text[start..self.at].parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Json::Number(number)),
            _ => Err(self.error("a number out of range")),
        }
    }

    fn digits(&mut self) -> Result<(), String> {
        match self.skip_while(|byte| byte.is_ascii_digit()) {
            0 => Err(self.error("expected a digit")),
            _ => Ok(()),
        }
    }
}
