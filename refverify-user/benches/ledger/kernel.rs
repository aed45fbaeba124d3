//! The kernel's algorithm in user space, to measure against: `fs/btrfs/ref-verify.c` keeps a
//! balanced tree of block entries, each with a tree of references, a tree of roots and a list
//! of actions, one allocation for each, and never gives any back but the actions of an extent
//! that is allocated again.
//!
//! The sizes are those of the kernel's structures (88, 64, 40 and 232 bytes, x86-64, 6.12);
//! what the tree itself needs is counted in them. The tree is an AVL tree, which is never
//! deeper than the kernel's.

#![expect(
    clippy::ref_option,
    clippy::unnecessary_box_returns,
    reason = "a tree is an optional box, and turning it moves boxes about"
)]

use refverify_user::{
    btrfs::{Action, DiskExtent, ExtentKind, RefKey},
    feed::{Change, Event},
};

/// A change of a reference (`struct btrfs_ref`).
struct RefChange {
    action: Action,
    kind: ExtentKind,
    bytenr: u64,
    len_bytes: u64,
    key: RefKey,
}

/// A node with the tree's part of it.
pub(crate) struct Node<T> {
    left: Tree<T>,
    right: Tree<T>,
    height: u8,
    item: T,
}

type Tree<T> = Option<Box<Node<T>>>;

trait Item {
    type Key: Ord;
    fn key(&self) -> Self::Key;
}

struct BlockEntry {
    bytenr: u64,
    _len: u64,
    num_refs: u64,
    metadata: bool,
    refs: Tree<RefEntry>,
    roots: Tree<RootEntry>,
    actions: Option<Box<RefAction>>,
    _padding: [u64; 1],
}

struct RefEntry {
    key: RefKey,
    num_refs: u64,
}

struct RootEntry {
    root: u64,
    num_refs: u64,
}

struct RefAction {
    _key: RefKey,
    _action: u32,
    next: Option<Box<RefAction>>,
    _transid: u64,
    _root: u64,
    _trace_len: u64,
    _trace: [u64; 16],
    _padding: [u64; 4],
}

const _: () = assert!(size_of::<Node<BlockEntry>>() == 88);
const _: () = assert!(size_of::<Node<RefEntry>>() == 64);
const _: () = assert!(size_of::<Node<RootEntry>>() == 40);
const _: () = assert!(size_of::<RefAction>() == 232);

impl Item for BlockEntry {
    type Key = u64;
    fn key(&self) -> u64 {
        self.bytenr
    }
}

impl Item for RefEntry {
    type Key = RefKey;
    fn key(&self) -> RefKey {
        self.key
    }
}

impl Item for RootEntry {
    type Key = u64;
    fn key(&self) -> u64 {
        self.root
    }
}

fn height<T>(tree: &Tree<T>) -> u8 {
    tree.as_ref().map_or(0, |node| node.height)
}

fn update<T>(node: &mut Box<Node<T>>) {
    node.height = 1 + height(&node.left).max(height(&node.right));
}

fn rotate_right<T>(mut node: Box<Node<T>>) -> Box<Node<T>> {
    let Some(mut left) = node.left.take() else { return node };
    node.left = left.right.take();
    update(&mut node);
    left.right = Some(node);
    update(&mut left);
    left
}

fn rotate_left<T>(mut node: Box<Node<T>>) -> Box<Node<T>> {
    let Some(mut right) = node.right.take() else { return node };
    node.right = right.left.take();
    update(&mut node);
    right.left = Some(node);
    update(&mut right);
    right
}

fn balance<T>(mut node: Box<Node<T>>) -> Box<Node<T>> {
    update(&mut node);
    let (left, right) = (height(&node.left), height(&node.right));
    if left > right + 1 {
        if let Some(child) = node.left.take() {
            let leans = height(&child.right) > height(&child.left);
            node.left = Some(if leans { rotate_left(child) } else { child });
        }
        return rotate_right(node);
    }
    if right > left + 1 {
        if let Some(child) = node.right.take() {
            let leans = height(&child.left) > height(&child.right);
            node.right = Some(if leans { rotate_right(child) } else { child });
        }
        return rotate_left(node);
    }
    node
}

fn insert<T: Item>(tree: &mut Tree<T>, item: T) {
    let Some(mut node) = tree.take() else {
        *tree = Some(Box::new(Node { left: None, right: None, height: 1, item }));
        return;
    };
    let side = if item.key() < node.item.key() { &mut node.left } else { &mut node.right };
    insert(side, item);
    *tree = Some(balance(node));
}

fn find<'a, T: Item>(mut tree: &'a mut Tree<T>, key: &T::Key) -> Option<&'a mut T> {
    while let Some(node) = tree {
        match key.cmp(&node.item.key()) {
            std::cmp::Ordering::Less => tree = &mut node.left,
            std::cmp::Ordering::Greater => tree = &mut node.right,
            std::cmp::Ordering::Equal => return Some(&mut node.item),
        }
    }
    None
}

fn take_first<T>(mut node: Box<Node<T>>) -> (Tree<T>, Box<Node<T>>) {
    match node.left.take() {
        None => (node.right.take(), node),
        Some(left) => {
            let (rest, first) = take_first(left);
            node.left = rest;
            (Some(balance(node)), first)
        }
    }
}

fn remove<T: Item>(tree: &mut Tree<T>, key: &T::Key) {
    let Some(mut node) = tree.take() else { return };
    match key.cmp(&node.item.key()) {
        std::cmp::Ordering::Less => remove(&mut node.left, key),
        std::cmp::Ordering::Greater => remove(&mut node.right, key),
        std::cmp::Ordering::Equal => {
            *tree = match (node.left.take(), node.right.take()) {
                (None, rest) | (rest, None) => rest,
                (left, Some(right)) => {
                    let (rest, mut first) = take_first(right);
                    first.left = left;
                    first.right = rest;
                    Some(balance(first))
                }
            };
            return;
        }
    }
    *tree = Some(balance(node));
}

/// The model of one file system, as the kernel's checker keeps it.
#[derive(Default)]
pub(crate) struct KernelLedger {
    blocks: Tree<BlockEntry>,
}

impl KernelLedger {
    /// `build_ref_tree` for one extent.
    pub(crate) fn seed(&mut self, disk: &DiskExtent) {
        let mut entry = BlockEntry {
            bytenr: disk.bytenr,
            _len: disk.len_bytes,
            num_refs: disk.total_refs,
            metadata: disk.kind != ExtentKind::Data,
            refs: None,
            roots: None,
            actions: None,
            _padding: [0],
        };
        for &(key, count) in &disk.refs {
            let num_refs = u64::from(count);
            insert(&mut entry.refs, RefEntry { key, num_refs });
            if key.parent == 0 && find(&mut entry.roots, &key.root).is_none() {
                insert(&mut entry.roots, RootEntry { root: key.root, num_refs });
            }
        }
        insert(&mut self.blocks, entry);
    }

    /// `btrfs_ref_tree_mod`.
    pub(crate) fn apply(&mut self, event: &Event) -> Result<(), ()> {
        let Change::Ref { action, kind, bytenr, len_bytes, key, .. } = event.change else {
            return Ok(());
        };
        let change = &RefChange { action, kind, bytenr, len_bytes, key };
        let mut trace = [0; 16];
        let frames = event.stack.len().min(16);
        trace[..frames].copy_from_slice(&event.stack[..frames]);
        let mut action = Box::new(RefAction {
            _key: change.key,
            _action: change.action as u32,
            next: None,
            _transid: event.transid,
            _root: change.key.root,
            _trace_len: frames as u64,
            _trace: trace,
            _padding: [0; 4],
        });
        if change.action == Action::AddExtent {
            let known = find(&mut self.blocks, &change.bytenr);
            if known.is_none() {
                insert(&mut self.blocks, new_entry(change));
            }
        }
        let entry = find(&mut self.blocks, &change.bytenr).ok_or(())?;
        let key = change.key;
        match change.action {
            Action::AddExtent => {
                if entry.num_refs != 0 {
                    return Err(());
                }
                let mut next = entry.actions.take();
                while let Some(mut old) = next {
                    next = old.next.take();
                }
                entry.num_refs = 1;
                add_ref(entry, key)?;
            }
            Action::AddRef => {
                if entry.num_refs == 0 {
                    return Err(());
                }
                add_ref(entry, key)?;
                entry.num_refs += 1;
            }
            Action::DropRef => {
                let held = find(&mut entry.refs, &key).ok_or(())?;
                held.num_refs = held.num_refs.checked_sub(1).ok_or(())?;
                if held.num_refs == 0 {
                    remove(&mut entry.refs, &key);
                }
                entry.num_refs -= 1;
            }
        }
        if key.parent == 0 {
            match find(&mut entry.roots, &key.root) {
                Some(root) if change.action == Action::DropRef => {
                    root.num_refs = root.num_refs.wrapping_sub(1);
                }
                Some(root) => root.num_refs += 1,
                None => insert(&mut entry.roots, RootEntry { root: key.root, num_refs: 1 }),
            }
        }
        action.next = entry.actions.take();
        entry.actions = Some(action);
        Ok(())
    }
}

fn add_ref(entry: &mut BlockEntry, key: RefKey) -> Result<(), ()> {
    match find(&mut entry.refs, &key) {
        Some(_) if entry.metadata => return Err(()),
        Some(held) => held.num_refs += 1,
        None => insert(&mut entry.refs, RefEntry { key, num_refs: 1 }),
    }
    Ok(())
}

fn new_entry(change: &RefChange) -> BlockEntry {
    BlockEntry {
        bytenr: change.bytenr,
        _len: change.len_bytes,
        num_refs: 0,
        metadata: change.kind != ExtentKind::Data,
        refs: None,
        roots: None,
        actions: None,
        _padding: [0],
    }
}
