//! A stack crosses once, and then by its number.
//!
//! Both ends keep the same list. On the wire a stack is a `uint`:
//!
//! | value | meaning |
//! |---|---|
//! | 0 | the empty stack |
//! | 1 | a stack follows; it joins the list |
//! | 2 | the list is emptied first; then as 1 |
//! | 3 + i | the stack at place i of the list, counted from 0 |
//!
//! A stack that follows is its depth as `uint`, then each address as a `sint`: what it is more
//! than the one before it, the first more than 0, wrapping.

use std::{collections::HashMap, sync::Arc};

use bytes::BytesMut;

use super::{
    DecodeError, EncodeError, Wrong,
    limits::{STACK_DEPTH_MAX, STACKS_MAX},
    wire::{Cursor, put_len, put_sint, put_uint},
};
use crate::feed::Stack;

const EMPTY: u64 = 0;
const FOLLOWS: u64 = 1;
const FORGET_THEN_FOLLOWS: u64 = 2;
const FIRST_PLACE: u64 = 3;

/// The sending end.
#[derive(Debug, Default)]
pub struct StackWriter {
    places: HashMap<Stack, u64>,
}

impl StackWriter {
    /// The next stack begins the list anew, on both ends.
    pub(super) fn forget(&mut self) {
        self.places.clear();
    }

    pub(super) fn put(&mut self, out: &mut BytesMut, stack: &Stack) -> Result<(), EncodeError> {
        if stack.is_empty() {
            put_uint(out, EMPTY);
            return Ok(());
        }
        if let Some(place) = self.places.get(stack) {
            put_uint(out, FIRST_PLACE + place);
            return Ok(());
        }
        if self.places.len() == STACKS_MAX {
            self.places.clear();
        }
        put_uint(out, if self.places.is_empty() { FORGET_THEN_FOLLOWS } else { FOLLOWS });
        put_len(out, "addresses of a stack", stack.len(), STACK_DEPTH_MAX)?;
        let mut before = 0_u64;
        for &address in &**stack {
            put_sint(out, address.wrapping_sub(before));
            before = address;
        }
        self.places.insert(Arc::clone(stack), self.places.len() as u64);
        Ok(())
    }
}

/// The receiving end.
#[derive(Debug)]
pub struct StackReader {
    list: Vec<Stack>,
    empty: Stack,
}

impl Default for StackReader {
    fn default() -> Self {
        Self { list: Vec::new(), empty: Arc::from([]) }
    }
}

impl StackReader {
    pub(super) fn empty(&self) -> Stack {
        Arc::clone(&self.empty)
    }

    pub(super) fn get(&mut self, cursor: &mut Cursor<'_>) -> Result<Stack, DecodeError> {
        match cursor.uint("a stack's number")? {
            EMPTY => Ok(self.empty()),
            FOLLOWS => self.add(cursor),
            FORGET_THEN_FOLLOWS => {
                self.list.clear();
                self.add(cursor)
            }
            number => self.find(cursor, number - FIRST_PLACE),
        }
    }

    fn find(&self, cursor: &Cursor<'_>, place: u64) -> Result<Stack, DecodeError> {
        let stack = usize::try_from(place).ok().and_then(|place| self.list.get(place));
        stack.cloned().ok_or_else(|| {
            cursor.wrong(Wrong::Unknown { what: "place in the list of stacks", value: place })
        })
    }

    fn add(&mut self, cursor: &mut Cursor<'_>) -> Result<Stack, DecodeError> {
        if self.list.len() == STACKS_MAX {
            let (count, max) = (STACKS_MAX as u64 + 1, STACKS_MAX as u64);
            return Err(cursor.wrong(Wrong::TooMany { what: "stacks", count, max }));
        }
        let depth = cursor.len("addresses of a stack", STACK_DEPTH_MAX, 1)?;
        let mut address = 0_u64;
        let mut next = || {
            address = address.wrapping_add(cursor.sint("an address of a stack")?);
            Ok(address)
        };
        let addresses = (0..depth).map(|_| next()).collect::<Result<Vec<_>, _>>()?;
        let stack = Stack::from(addresses);
        self.list.push(Arc::clone(&stack));
        Ok(stack)
    }
}
