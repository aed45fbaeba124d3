//! Small BTF blobs for tests: structures as this or that kernel has them.

use std::collections::HashMap;

use super::btf::KernelTypes;

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;

/// Builds one blob (format: kernel, `Documentation/bpf/btf.rst`).
pub(super) struct BtfBuilder {
    types: Vec<u32>,
    strings: Vec<u8>,
    last_id: u32,
    ids: HashMap<String, u32>,
}

impl BtfBuilder {
    /// A blob with the integers `u8`, `u32`, `u64` and `int`, and `ptr`.
    pub(super) fn new() -> Self {
        let mut built =
            Self { types: Vec::new(), strings: vec![0], last_id: 0, ids: HashMap::new() };
        for (name, len_bytes) in [("u8", 1), ("u32", 4), ("u64", 8), ("int", 4)] {
            built.add(name, KIND_INT, 0, len_bytes, &[len_bytes * 8]);
        }
        built.add("ptr", KIND_PTR, 0, 0, &[]);
        built
    }

    /// A structure: its size, and members as `(name, type, offset in bytes)`; a member
    /// without a name is anonymous.
    pub(super) fn structure(
        &mut self,
        name: &str,
        len_bytes: u32,
        members: &[(&str, &str, u32)],
    ) -> &mut Self {
        self.aggregate(name, KIND_STRUCT, len_bytes, members)
    }

    /// A union, likewise.
    pub(super) fn union(
        &mut self,
        name: &str,
        len_bytes: u32,
        members: &[(&str, &str, u32)],
    ) -> &mut Self {
        self.aggregate(name, KIND_UNION, len_bytes, members)
    }

    /// A tracepoint with pointers to these structures, or plain types, as arguments.
    pub(super) fn tracepoint(&mut self, name: &str, arguments: &[&str]) -> &mut Self {
        let prototype = self.prototype(&[&["ptr"], arguments].concat());
        let pointer = self.add("", KIND_PTR, 0, prototype, &[]);
        self.add(&format!("btf_trace_{name}"), KIND_TYPEDEF, 0, pointer, &[]);
        self
    }

    /// A function, with arguments likewise.
    pub(super) fn function(&mut self, name: &str, arguments: &[&str]) -> &mut Self {
        let prototype = self.prototype(arguments);
        self.add(name, KIND_FUNC, 0, prototype, &[]);
        self
    }

    fn prototype(&mut self, arguments: &[&str]) -> u32 {
        let mut parameters = Vec::new();
        for argument in arguments {
            let mut id = self.id(argument);
            if !matches!(*argument, "int" | "u64" | "ptr") {
                id = self.add("", KIND_PTR, 0, id, &[]);
            }
            parameters.extend([0, id]);
        }
        let count = u32::try_from(arguments.len()).expect("few");
        self.add("", KIND_FUNC_PROTO, count, 0, &parameters)
    }

    /// The blob, parsed.
    pub(super) fn build(&self) -> KernelTypes {
        let types: Vec<u8> = self.types.iter().flat_map(|word| word.to_le_bytes()).collect();
        let types_len = u32::try_from(types.len()).expect("small");
        let strings_len = u32::try_from(self.strings.len()).expect("small");
        let mut blob = Vec::new();
        blob.extend(0xeb9f_u16.to_le_bytes());
        blob.extend([1, 0]);
        for word in [24, 0, types_len, types_len, strings_len] {
            blob.extend(u32::to_le_bytes(word));
        }
        blob.extend(types);
        blob.extend(&self.strings);
        KernelTypes::from_bytes(&blob)
    }

    fn aggregate(
        &mut self,
        name: &str,
        kind: u32,
        len_bytes: u32,
        members: &[(&str, &str, u32)],
    ) -> &mut Self {
        let mut words = Vec::new();
        for (member, of_type, offset) in members {
            words.extend([self.string(member), self.id(of_type), offset * 8]);
        }
        let count = u32::try_from(members.len()).expect("few");
        // Unions that are members without a name are known here by a name with a dot.
        let shown = if name.contains('.') { "" } else { name };
        let id = self.add(shown, kind, count, len_bytes, &words);
        self.ids.insert(name.to_owned(), id);
        self
    }

    fn add(&mut self, name: &str, kind: u32, vlen: u32, size_or_type: u32, rest: &[u32]) -> u32 {
        let name_offset = self.string(name);
        self.types.extend([name_offset, kind << 24 | vlen, size_or_type]);
        self.types.extend(rest);
        self.last_id += 1;
        self.ids.insert(name.to_owned(), self.last_id);
        self.last_id
    }

    fn id(&self, name: &str) -> u32 {
        *self.ids.get(name).unwrap_or_else(|| panic!("{name} is not built yet"))
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let offset = u32::try_from(self.strings.len()).expect("small");
        self.strings.extend(text.as_bytes());
        self.strings.push(0);
        offset
    }
}
