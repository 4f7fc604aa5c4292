//! Rust sources as tokens: enough of the language to find its items and paths.

/// A token, and the line that it stands on, from one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) line: usize,
}

/// What a token is. Numbers, strings and characters are all `Literal`; lifetimes are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Word(String),
    /// `::`.
    Colons,
    /// The text of a string, or nothing of another literal.
    Literal(String),
    Mark(char),
}

impl Token {
    /// The word, if it is one.
    pub(crate) fn word(&self) -> Option<&str> {
        match &self.kind {
            Kind::Word(word) => Some(word),
            _ => None,
        }
    }

    pub(crate) fn is(&self, mark: char) -> bool {
        self.kind == Kind::Mark(mark)
    }

    pub(crate) fn is_word(&self, word: &str) -> bool {
        self.word() == Some(word)
    }
}

/// The tokens of `source`, without comments, and without items that only tests have (`#[cfg(test)]`).
pub(crate) fn without_tests(source: &str) -> Vec<Token> {
    let tokens = tokens(source);
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match only_in_tests(&tokens[at..]) {
            Some(attribute) => {
                let from = at + attribute;
                at = match is_item(&tokens[from..]) {
                    true => end_of_item(&tokens, from),
                    false => end_of_entry(&tokens, from),
                }
            }
            None => {
                kept.push(tokens[at].clone());
                at += 1;
            }
        }
    }
    kept
}

/// The length of an attribute `#[cfg(test)]` or `#[cfg(any(test, …))]` at the beginning of `tokens`.
fn only_in_tests(tokens: &[Token]) -> Option<usize> {
    let starts = |words: &[&str]| {
        tokens.len() > words.len()
            && words
                .iter()
                .zip(tokens)
                .all(|(word, token)| match token.word() {
                    Some(found) => found == *word,
                    None => matches!(token.kind, Kind::Mark(mark) if word.starts_with(mark)),
                })
    };
    let test = starts(&["#", "[", "cfg", "(", "test", ")"])
        || starts(&["#", "[", "cfg", "(", "any", "(", "test"]);
    test.then(|| group(tokens, 1)).map(|end| end + 1)
}

/// The index of the token that closes the group which opens at `open`.
pub(crate) fn group(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.kind {
            Kind::Mark('(' | '[' | '{') => depth += 1,
            Kind::Mark(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    tokens.len() - 1
}

/// Whether an item begins here, and not an entry of a list: a field, a variant, an arm.
fn is_item(tokens: &[Token]) -> bool {
    const KEYWORDS: [&str; 17] = [
        "pub",
        "mod",
        "use",
        "fn",
        "struct",
        "enum",
        "union",
        "trait",
        "type",
        "const",
        "static",
        "impl",
        "unsafe",
        "extern",
        "macro_rules",
        "let",
        "async",
    ];
    let word = tokens.first().and_then(Token::word);
    let is_keyword = word.is_some_and(|word| KEYWORDS.contains(&word)) || tokens[0].is('#');
    // `pub name: Type` is a field.
    let name = tokens.iter().position(|token| token.is(':'));
    let is_field = word == Some("pub") && name.is_some_and(|at| at <= 5);
    is_keyword && !is_field
}

/// The index after the item that begins at `at`: after its `;`, or the braces of its body.
pub(crate) fn end_of_item(tokens: &[Token], mut at: usize) -> usize {
    while at < tokens.len() {
        match tokens[at].kind {
            Kind::Mark(';') => return at + 1,
            Kind::Mark('{') => return group(tokens, at) + 1,
            Kind::Mark('(' | '[') => at = group(tokens, at) + 1,
            _ => at += 1,
        }
    }
    at
}

/// The index after the entry of a list that begins at `at`, or of what closes the list.
fn end_of_entry(tokens: &[Token], mut at: usize) -> usize {
    while at < tokens.len() {
        match tokens[at].kind {
            Kind::Mark(',') => return at + 1,
            Kind::Mark('(' | '[' | '{') => at = group(tokens, at) + 1,
            Kind::Mark(')' | ']' | '}') => return at,
            _ => at += 1,
        }
    }
    at
}

/// All tokens of `source`.
pub(crate) fn tokens(source: &str) -> Vec<Token> {
    let mut reader = Reader {
        text: source.chars().collect(),
        at: 0,
        line: 1,
    };
    let mut tokens = Vec::new();
    while reader.at < reader.text.len() {
        let line = reader.line;
        if let Some(kind) = reader.next() {
            tokens.push(Token { kind, line });
        }
    }
    tokens
}

struct Reader {
    text: Vec<char>,
    at: usize,
    line: usize,
}

impl Reader {
    fn peek(&self, ahead: usize) -> char {
        self.text.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn bump(&mut self) -> char {
        let c = self.peek(0);
        self.line += usize::from(c == '\n');
        self.at += 1;
        c
    }

    /// The next token, or `None` for a space, a comment or a lifetime.
    fn next(&mut self) -> Option<Kind> {
        match (self.peek(0), self.peek(1)) {
            ('/', '/') => {
                while !matches!(self.peek(0), '\n' | '\0') {
                    self.bump();
                }
                None
            }
            ('/', '*') => {
                self.block_comment();
                None
            }
            (':', ':') => {
                self.at += 2;
                Some(Kind::Colons)
            }
            ('"', _) => Some(self.string()),
            ('\'', _) => self.character_or_lifetime(),
            (c, _) if c.is_alphabetic() || c == '_' => Some(self.word()),
            (c, _) if c.is_ascii_digit() => {
                self.number();
                Some(Kind::Literal(String::new()))
            }
            (c, _) if c.is_whitespace() => {
                self.bump();
                None
            }
            _ => Some(Kind::Mark(self.bump())),
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0_usize;
        loop {
            match (self.peek(0), self.peek(1)) {
                ('/', '*') => {
                    depth += 1;
                    self.at += 2;
                }
                ('*', '/') => {
                    depth -= 1;
                    self.at += 2;
                }
                ('\0', _) if self.at >= self.text.len() => return,
                _ => {
                    self.bump();
                }
            }
            if depth == 0 {
                return;
            }
        }
    }

    fn string(&mut self) -> Kind {
        let mut text = String::new();
        self.bump();
        while self.at < self.text.len() {
            match self.bump() {
                '"' => break,
                '\\' => {
                    self.bump();
                }
                c => text.push(c),
            }
        }
        Kind::Literal(text)
    }

    fn raw_string(&mut self) -> Kind {
        let mut hashes = 0;
        while self.peek(0) == '#' {
            hashes += 1;
            self.bump();
        }
        self.bump();
        let mut text = String::new();
        while self.at < self.text.len() {
            let closes = self.peek(0) == '"' && (1..=hashes).all(|ahead| self.peek(ahead) == '#');
            let c = self.bump();
            if closes {
                self.at += hashes;
                break;
            }
            text.push(c);
        }
        Kind::Literal(text)
    }

    fn character_or_lifetime(&mut self) -> Option<Kind> {
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        if is_name(self.peek(1)) && self.peek(2) != '\'' {
            self.bump();
            while is_name(self.peek(0)) {
                self.bump();
            }
            return None;
        }
        self.bump();
        while self.at < self.text.len() {
            match self.bump() {
                '\'' => break,
                '\\' => {
                    self.bump();
                }
                _ => {}
            }
        }
        Some(Kind::Literal(String::new()))
    }

    fn word(&mut self) -> Kind {
        let start = self.at;
        while self.peek(0).is_alphanumeric() || self.peek(0) == '_' {
            self.bump();
        }
        let word: String = self.text[start..self.at].iter().collect();
        match (word.as_str(), self.peek(0), self.peek(1)) {
            ("r" | "br" | "cr", '"', _) | ("r" | "br" | "cr", '#', '"' | '#') => self.raw_string(),
            ("b" | "c", '"', _) => self.string(),
            ("b", '\'', _) => self
                .character_or_lifetime()
                .unwrap_or(Kind::Literal(String::new())),
            // A raw identifier.
            ("r", '#', _) => {
                self.bump();
                self.word()
            }
            _ => Kind::Word(word),
        }
    }

    fn number(&mut self) {
        while self.peek(0).is_alphanumeric()
            || self.peek(0) == '_'
            || (self.peek(0) == '.' && self.peek(1).is_ascii_digit())
        {
            self.bump();
        }
    }
}
