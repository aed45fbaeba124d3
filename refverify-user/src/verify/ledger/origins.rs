//! Who made a change, and from where: tasks and stacks, each once, by number.

use super::hash::QuickMap;
use crate::feed::{Comm, Event, Stack};

/// A task, as an event names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Task {
    pub(super) pid: u32,
    pub(super) tid: u32,
    pub(super) comm: Comm,
}

/// The tasks and stacks of the changes that are pending, or of those in one run of histories.
/// A stack that is shared is shared between these too: it is counted, not copied.
#[derive(Clone, Debug, Default)]
pub(super) struct Origins {
    tasks: Vec<Task>,
    stacks: Vec<Stack>,
}

impl Origins {
    pub(super) fn task(&self, number: u32) -> Option<&Task> {
        self.tasks.get(number as usize)
    }

    pub(super) fn stack(&self, number: u32) -> Option<&Stack> {
        self.stacks.get(number as usize)
    }

    /// Bytes allocated, but for the stacks' frames, which others share.
    pub(super) fn bytes(&self) -> usize {
        self.tasks.capacity() * size_of::<Task>() + self.stacks.capacity() * size_of::<Stack>()
    }
}

/// Gives numbers to tasks and stacks.
#[derive(Debug)]
pub(super) struct Numbering {
    origins: Origins,
    task_numbers: QuickMap<Task, u32>,
    stack_numbers: QuickMap<Stack, u32>,
    /// The last ones, to save looking them up: a few tasks and loops make most events.
    last_tasks: Box<[Option<(Task, u32)>]>,
    last_stacks: Box<[Option<(Stack, u32)>]>,
}

impl Default for Numbering {
    fn default() -> Self {
        Self {
            origins: Origins::default(),
            task_numbers: QuickMap::default(),
            stack_numbers: QuickMap::default(),
            last_tasks: vec![None; LAST_TASKS].into(),
            last_stacks: vec![None; LAST_STACKS].into(),
        }
    }
}

const LAST_TASKS: usize = 64;
const LAST_STACKS: usize = 1024;

impl Numbering {
    /// The numbers of an event's task and stack.
    pub(super) fn of_event(&mut self, event: &Event) -> (u32, u32) {
        let task = Task { pid: event.pid, tid: event.tid, comm: event.comm };
        (self.task(task), self.stack(&event.stack))
    }

    /// The number of a task.
    pub(super) fn task(&mut self, task: Task) -> u32 {
        let place = task.tid as usize % LAST_TASKS;
        if let Some((last, number)) = self.last_tasks[place]
            && last == task
        {
            return number;
        }
        let next = self.origins.tasks.len() as u32;
        let number = *self.task_numbers.entry(task).or_insert(next);
        if number == next {
            self.origins.tasks.push(task);
        }
        self.last_tasks[place] = Some((task, number));
        number
    }

    /// The number of a stack.
    pub(super) fn stack(&mut self, stack: &Stack) -> u32 {
        // The verifier shares equal stacks, so the address nearly always tells. While it is
        // held here no other stack can have it.
        let address = stack.as_ptr().addr();
        let place = (address >> 4 ^ address >> 12) % LAST_STACKS;
        if let Some((last, number)) = &self.last_stacks[place]
            && std::ptr::eq(last.as_ptr(), stack.as_ptr())
            && last.len() == stack.len()
        {
            return *number;
        }
        let number = self.look_stack_up(stack);
        self.last_stacks[place] = Some((stack.clone(), number));
        number
    }

    fn look_stack_up(&mut self, stack: &Stack) -> u32 {
        if let Some(&number) = self.stack_numbers.get(stack) {
            return number;
        }
        let number = self.origins.stacks.len() as u32;
        self.stack_numbers.insert(stack.clone(), number);
        self.origins.stacks.push(stack.clone());
        number
    }

    /// The numbers, among these, of a task and a stack that have numbers of `from`.
    pub(super) fn renumber(&mut self, (task, stack): (u32, u32), from: &Origins) -> (u32, u32) {
        match (from.task(task), from.stack(stack)) {
            (Some(&known_task), Some(known_stack)) => {
                (self.task(known_task), self.stack(known_stack))
            }
            _ => (task, stack),
        }
    }

    /// What the numbers stand for.
    pub(super) const fn origins(&self) -> &Origins {
        &self.origins
    }

    /// Forgets all numbers.
    pub(super) fn reset(&mut self) {
        self.origins.tasks.clear();
        self.origins.stacks.clear();
        self.task_numbers.clear();
        self.stack_numbers.clear();
        self.last_tasks.fill(None);
        self.last_stacks.fill(None);
    }

    /// What the numbers stand for, when no more will be given.
    pub(super) fn into_origins(self) -> Origins {
        let mut origins = self.origins;
        origins.tasks.shrink_to_fit();
        origins.stacks.shrink_to_fit();
        origins
    }
}
