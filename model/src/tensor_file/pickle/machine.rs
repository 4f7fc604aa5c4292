//! A stack machine that builds values and calls nothing.
//!
//! Containers live in one table and refer to each other by number, so that neither reading, nor
//! walking, nor dropping a value recurses, however deep a file nests. Every instruction makes at
//! most one entry, every byte at most one instruction, and what a call copies counts against the
//! same length: memory is bounded by that of the pickle.

use std::collections::HashMap;

use super::opcodes as op;

/// A piece of text: from where to where in the pickle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Text {
    start: u32,
    end: u32,
}

/// Number of a container in the machine's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node(u32);

/// A value on the stack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Text(Text),
    /// A number or bytes that no state dict needs.
    Plain,
    /// A function or class: module and name.
    Global(Text, Text),
    /// A tuple, list or dict, or the result of a call.
    Node(Node),
}

/// What is behind a [`Node`].
#[derive(Debug)]
pub(super) enum Container {
    /// Tuple or list.
    Items(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    /// `function(arguments)`, not called.
    Call {
        function: Value,
        arguments: Value,
    },
    /// A reference to something outside of the pickle.
    Persistent(Value),
    /// What is not looked into: sets.
    Opaque,
}

/// Reads the pickles of a buffer one after another.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    nodes: Vec<Container>,
    /// Entries that calls may still copy.
    copies_left: usize,
}

impl<'a> Machine<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Machine<'a> {
        Machine {
            bytes,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            nodes: Vec::new(),
            copies_left: bytes.len(),
        }
    }

    /// Where the pickle after the last one begins.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Runs to the end of the next pickle and gives its value; what is wrong as text.
    pub(super) fn run(&mut self) -> Result<Value, String> {
        self.stack.clear();
        self.marks.clear();
        self.memo.clear();
        let start = self.at;
        self.steps()
            .map_err(|message| format!("its pickle at byte {start} is broken: {message}"))
    }

    pub(super) fn text(&self, text: Text) -> &'a str {
        let bytes = &self.bytes[text.start as usize..text.end as usize];
        std::str::from_utf8(bytes).unwrap_or("(no UTF-8)")
    }

    pub(super) fn container(&self, value: Value) -> Option<&Container> {
        match value {
            Value::Node(node) => self.nodes.get(node.0 as usize),
            _ => None,
        }
    }

    /// All containers, in order of appearance.
    pub(super) fn containers(&self) -> &[Container] {
        &self.nodes
    }

    /// The items of a tuple or list.
    pub(super) fn items(&self, value: Value) -> Option<&[Value]> {
        match self.container(value)? {
            Container::Items(items) => Some(items),
            _ => None,
        }
    }

    pub(super) fn int(&self, value: Value) -> Option<i64> {
        match value {
            Value::Int(number) => Some(number),
            _ => None,
        }
    }

    /// The flag under `key` of a dict.
    pub(super) fn flag_in(&self, dict: Value, key: &str) -> Option<bool> {
        let Container::Dict(entries) = self.container(dict)? else {
            return None;
        };
        entries.iter().rev().find_map(|entry| match entry {
            (Value::Text(text), Value::Bool(flag)) if self.text(*text) == key => Some(*flag),
            _ => None,
        })
    }

    fn steps(&mut self) -> Result<Value, String> {
        loop {
            let code = self.take(1)?[0];
            if code == op::STOP {
                return self.pop();
            }
            let is_known = self.control(code)?
                || self.number(code)?
                || self.string(code)?
                || self.collection(code)?
                || self.object(code)?
                || self.memo(code)?;
            if !is_known {
                return Err(format!("instruction {code:#04x} at byte {}", self.at - 1));
            }
        }
    }

    /// Frames, and the stack itself. `false` for other instructions.
    fn control(&mut self, code: u8) -> Result<bool, String> {
        match code {
            op::PROTO => {
                let protocol = self.take(1)?[0];
                if protocol > 5 {
                    return Err(format!("protocol {protocol} is unknown"));
                }
            }
            op::FRAME => {
                self.take(8)?;
            }
            op::MARK => self.marks.push(self.stack.len()),
            op::POP => match self.marks.last() {
                Some(&mark) if mark == self.stack.len() => {
                    self.marks.pop();
                }
                _ => {
                    self.pop()?;
                }
            },
            op::POP_MARK => {
                self.pop_mark()?;
            }
            op::DUP => {
                let top = self.pop()?;
                self.stack.extend([top, top]);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Constants and numbers. `false` for other instructions.
    fn number(&mut self, code: u8) -> Result<bool, String> {
        match code {
            op::NONE => self.stack.push(Value::None),
            op::NEWTRUE => self.stack.push(Value::Bool(true)),
            op::NEWFALSE => self.stack.push(Value::Bool(false)),
            op::BININT => {
                let bytes = self.array::<4>()?;
                self.stack
                    .push(Value::Int(i32::from_le_bytes(bytes).into()));
            }
            op::BININT1 => {
                let byte = self.take(1)?[0];
                self.stack.push(Value::Int(byte.into()));
            }
            op::BININT2 => {
                let bytes = self.array::<2>()?;
                self.stack
                    .push(Value::Int(u16::from_le_bytes(bytes).into()));
            }
            op::LONG1 => {
                let length = self.take(1)?[0].into();
                self.long(length)?;
            }
            op::LONG4 => {
                let length = self.length4()?;
                self.long(length)?;
            }
            op::INT | op::LONG => {
                let line = self.line()?;
                let value = match self.text(line).trim_end_matches('L') {
                    "00" if code == op::INT => Value::Bool(false),
                    "01" if code == op::INT => Value::Bool(true),
                    digits => digits.parse().map_or(Value::Plain, Value::Int),
                };
                self.stack.push(value);
            }
            op::FLOAT => {
                self.line()?;
                self.stack.push(Value::Plain);
            }
            op::BINFLOAT => {
                self.take(8)?;
                self.stack.push(Value::Plain);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Text and bytes. `false` for other instructions.
    fn string(&mut self, code: u8) -> Result<bool, String> {
        match code {
            op::SHORT_BINSTRING | op::SHORT_BINUNICODE => {
                let length = self.take(1)?[0].into();
                self.push_text(length)?;
            }
            op::BINSTRING | op::BINUNICODE => {
                let length = self.length4()?;
                self.push_text(length)?;
            }
            op::BINUNICODE8 => {
                let length = self.length8()?;
                self.push_text(length)?;
            }
            op::SHORT_BINBYTES => {
                let length = self.take(1)?[0].into();
                self.push_bytes(length)?;
            }
            op::BINBYTES => {
                let length = self.length4()?;
                self.push_bytes(length)?;
            }
            op::BINBYTES8 | op::BYTEARRAY8 => {
                let length = self.length8()?;
                self.push_bytes(length)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Tuples, lists, dicts and sets, and what goes into them. `false` for other instructions.
    fn collection(&mut self, code: u8) -> Result<bool, String> {
        match code {
            op::EMPTY_TUPLE | op::EMPTY_LIST => self.push(Container::Items(Vec::new()))?,
            op::EMPTY_DICT => self.push(Container::Dict(Vec::new()))?,
            op::EMPTY_SET => self.push(Container::Opaque)?,
            op::TUPLE1 => self.push_last(1)?,
            op::TUPLE2 => self.push_last(2)?,
            op::TUPLE3 => self.push_last(3)?,
            op::TUPLE | op::LIST => {
                let items = self.pop_mark()?;
                self.push(Container::Items(items))?;
            }
            op::DICT => {
                let items = self.pop_mark()?;
                self.push(Container::Dict(pairs(&items)?))?;
            }
            op::FROZENSET => {
                self.pop_mark()?;
                self.push(Container::Opaque)?;
            }
            op::APPEND => {
                let item = self.pop()?;
                self.extend(&[item])?;
            }
            op::APPENDS => {
                let items = self.pop_mark()?;
                self.extend(&items)?;
            }
            op::ADDITEMS => {
                self.pop_mark()?;
                self.top()?;
            }
            op::SETITEM => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(&[key, value])?;
            }
            op::SETITEMS => {
                let items = self.pop_mark()?;
                self.set(&items)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Functions, and what would be called. `false` for other instructions.
    fn object(&mut self, code: u8) -> Result<bool, String> {
        match code {
            op::BUILD => {
                // The attributes of an object; a state dict has none that count.
                self.pop()?;
                self.top()?;
            }
            op::GLOBAL => {
                let (module, name) = (self.line()?, self.line()?);
                self.stack.push(Value::Global(module, name));
            }
            op::STACK_GLOBAL => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => {
                    self.stack.push(Value::Global(module, name));
                }
                _ => return Err("a function is named by something else than text".to_owned()),
            },
            op::REDUCE | op::NEWOBJ => {
                let arguments = self.pop()?;
                let function = self.pop()?;
                self.call(function, arguments)?;
            }
            op::NEWOBJ_EX => {
                self.pop()?;
                let arguments = self.pop()?;
                let function = self.pop()?;
                self.call(function, arguments)?;
            }
            op::BINPERSID => {
                let id = self.pop()?;
                self.push(Container::Persistent(id))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What is kept under a number, and taken from there. `false` for other instructions.
    fn memo(&mut self, code: u8) -> Result<bool, String> {
        match code {
            op::BINPUT => {
                let key = self.take(1)?[0].into();
                let top = self.top()?;
                self.memo.insert(key, top);
            }
            op::LONG_BINPUT => {
                let key = u32::from_le_bytes(self.array()?);
                let top = self.top()?;
                self.memo.insert(key, top);
            }
            op::MEMOIZE => {
                let key = self.memo.len() as u32;
                let top = self.top()?;
                self.memo.insert(key, top);
            }
            op::BINGET => {
                let key = self.take(1)?[0].into();
                self.recall(key)?;
            }
            op::LONG_BINGET => {
                let key = u32::from_le_bytes(self.array()?);
                self.recall(key)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let bytes = self.bytes;
        let rest = &bytes[self.at..];
        let taken = rest
            .get(..count)
            .ok_or_else(|| format!("it ends within {} bytes", bytes.len()))?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn length4(&mut self) -> Result<usize, String> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn length8(&mut self) -> Result<usize, String> {
        usize::try_from(u64::from_le_bytes(self.array()?)).map_err(|error| error.to_string())
    }

    /// The text up to the next line feed, which is passed over.
    fn line(&mut self) -> Result<Text, String> {
        let length = self.bytes[self.at..]
            .iter()
            .position(|&byte| byte == b'\n')
            .ok_or("a line without an end")?;
        let text = self.take_text(length)?;
        self.take(1)?;
        Ok(text)
    }

    fn take_text(&mut self, length: usize) -> Result<Text, String> {
        let start = self.at;
        self.take(length)?;
        // The buffer is far shorter than 4 GiB.
        Ok(Text {
            start: start as u32,
            end: self.at as u32,
        })
    }

    fn push_text(&mut self, length: usize) -> Result<(), String> {
        let text = self.take_text(length)?;
        self.stack.push(Value::Text(text));
        Ok(())
    }

    fn push_bytes(&mut self, length: usize) -> Result<(), String> {
        self.take(length)?;
        self.stack.push(Value::Plain);
        Ok(())
    }

    /// A number of `length` bytes, least significant first, the last with the sign.
    fn long(&mut self, length: usize) -> Result<(), String> {
        let bytes = self.take(length)?;
        let value = if bytes.len() > 8 {
            Value::Plain
        } else {
            let is_negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
            let mut wide = [if is_negative { 0xff } else { 0 }; 8];
            wide[..bytes.len()].copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(wide))
        };
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(format!("nothing on the stack at byte {}", self.at));
        }
        self.stack.pop().ok_or_else(|| "empty stack".to_owned())
    }

    fn top(&self) -> Result<Value, String> {
        self.stack
            .last()
            .copied()
            .ok_or_else(|| format!("nothing on the stack at byte {}", self.at))
    }

    fn pop_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self
            .marks
            .pop()
            .ok_or_else(|| format!("no mark at byte {}", self.at))?;
        Ok(self.stack.split_off(mark))
    }

    fn push(&mut self, container: Container) -> Result<(), String> {
        let number = u32::try_from(self.nodes.len()).map_err(|error| error.to_string())?;
        self.nodes.push(container);
        self.stack.push(Value::Node(Node(number)));
        Ok(())
    }

    fn push_last(&mut self, count: usize) -> Result<(), String> {
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Container::Items(items))
    }

    fn recall(&mut self, key: u32) -> Result<(), String> {
        let value = self
            .memo
            .get(&key)
            .copied()
            .ok_or_else(|| format!("nothing is remembered as {key}"))?;
        self.stack.push(value);
        Ok(())
    }

    fn extend(&mut self, items: &[Value]) -> Result<(), String> {
        let list = self.top()?;
        match self.container_mut(list) {
            Some(Container::Items(own)) => own.extend_from_slice(items),
            // A list of another class: its items do not count.
            Some(_) => {}
            None => return Err("items are added to what is no list".to_owned()),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Value]) -> Result<(), String> {
        let entries = pairs(items)?;
        let dict = self.top()?;
        match self.container_mut(dict) {
            Some(Container::Dict(own)) => own.extend(entries),
            Some(_) => {}
            None => return Err("entries are added to what is no dict".to_owned()),
        }
        Ok(())
    }

    fn container_mut(&mut self, value: Value) -> Option<&mut Container> {
        match value {
            Value::Node(node) => self.nodes.get_mut(node.0 as usize),
            _ => None,
        }
    }

    /// Notes a call; ordered dicts become plain ones, sizes the tuples they are.
    fn call(&mut self, function: Value, arguments: Value) -> Result<(), String> {
        let Value::Global(module, name) = function else {
            return self.push(Container::Call {
                function,
                arguments,
            });
        };
        match (self.text(module), self.text(name)) {
            ("collections", "OrderedDict") => {
                // Python 2 wrote the entries as an argument: a list of pairs.
                let list = self
                    .items(arguments)
                    .and_then(|items| items.first().copied());
                let pairs = list.and_then(|list| self.items(list)).unwrap_or_default();
                let entries = pairs.iter().filter_map(|&pair| match self.items(pair) {
                    Some(&[key, value]) => Some((key, value)),
                    _ => None,
                });
                let entries: Vec<_> = entries.collect();
                // A list that is remembered could be copied again by every instruction.
                self.copies_left = self
                    .copies_left
                    .checked_sub(pairs.len())
                    .ok_or("it copies more than it holds")?;
                self.push(Container::Dict(entries))
            }
            ("torch", "Size") => {
                let list = self
                    .items(arguments)
                    .and_then(|items| items.first().copied());
                self.stack.push(list.unwrap_or(arguments));
                Ok(())
            }
            _ => self.push(Container::Call {
                function,
                arguments,
            }),
        }
    }
}

fn pairs(items: &[Value]) -> Result<Vec<(Value, Value)>, String> {
    if !items.len().is_multiple_of(2) {
        return Err("a key without a value".to_owned());
    }
    Ok(items
        .chunks_exact(2)
        .map(|pair| (pair[0], pair[1]))
        .collect())
}
