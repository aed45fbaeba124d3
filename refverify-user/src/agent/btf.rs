//! The kernel's description of its own types (BTF): where a member lies, how wide it is, what
//! a tracepoint's arguments are.
//!
//! btrfs is a module on most distributions; then its types are in the module's split BTF, on
//! top of that of vmlinux (`CONFIG_DEBUG_INFO_BTF_MODULES`).

use std::path::{Path, PathBuf};

use btf_rs::{Btf, BtfType, Member, Type};

/// Where the kernel shows its BTF.
const SYSFS: &str = "/sys/kernel/btf";

/// Qualifiers and typedefs to look through, and anonymous members to look into, at most: a
/// bound against a description that points to itself.
const DEPTH_MAX: usize = 32;

/// Why the kernel's types cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the kernel's type information {path}: {reason}", path = path.display())]
pub struct BtfError {
    path: PathBuf,
    reason: String,
}

/// Where a member lies in its structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// From the structure's beginning, in bytes.
    pub offset: u32,
    /// Its size in bytes.
    pub len_bytes: u32,
}

/// The types of the running kernel, with those of btrfs.
pub(super) struct KernelTypes(Btf);

impl KernelTypes {
    /// Reads the types of the running kernel.
    pub(super) fn of_running_kernel() -> Result<Self, BtfError> {
        let vmlinux = Path::new(SYSFS).join("vmlinux");
        let module = Path::new(SYSFS).join("btrfs");
        let failed = |path: &Path, error: btf_rs::Error| BtfError {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let base = Btf::from_file(&vmlinux).map_err(|error| failed(&vmlinux, error))?;
        if !module.exists() {
            return Ok(Self(base));
        }
        let split = Btf::from_split_file(&module, &base);
        Ok(Self(split.map_err(|error| failed(&module, error))?))
    }

    /// Parses one self-contained blob.
    #[cfg(test)]
    pub(super) fn from_bytes(blob: &[u8]) -> Self {
        Self(Btf::from_bytes(blob).expect("a well-formed blob"))
    }

    /// The field that `path` names: a structure, then members, as in
    /// `btrfs_ref.tree_ref.level`. Members of anonymous structures and unions count as the
    /// outer one's.
    pub(super) fn field(&self, path: &str) -> Option<Field> {
        let (structure, members) = path.split_once('.')?;
        let mut current = self.structure(structure)?;
        let mut offset = 0;
        let mut len_bytes = 0;
        for name in members.split('.') {
            let (found, member_offset) = self.member(&current, name, DEPTH_MAX)?;
            offset += member_offset;
            current = self.resolve(&found)?;
            len_bytes = self.size_of(&current, DEPTH_MAX)?;
        }
        Some(Field { offset, len_bytes })
    }

    /// The first of several paths that this kernel has: names change over the versions.
    pub(super) fn first_field(&self, paths: &[&str]) -> Option<Field> {
        paths.iter().find_map(|path| self.field(path))
    }

    /// The size of a structure in bytes.
    pub(super) fn structure_len_bytes(&self, name: &str) -> Option<u32> {
        self.size_of(&self.structure(name)?, DEPTH_MAX)
    }

    /// The value of an enumerator, as in `btrfs_trans_state`, `TRANS_STATE_SUPER_COMMITTED`.
    pub(super) fn enumerator(&self, enumeration: &str, name: &str) -> Option<u32> {
        let types = self.0.resolve_types_by_name(enumeration).ok()?;
        types.iter().find_map(|found| {
            let Type::Enum(found) = found else { return None };
            let named = |member: &&btf_rs::EnumMember| self.name(*member).as_deref() == Some(name);
            Some(found.members.iter().find(named)?.val())
        })
    }

    /// What the arguments of a tracepoint point to (`btrfs_fs_info`), or are (`int`).
    /// The kernel describes its handlers as `btf_trace_<name>`, whose first argument is not
    /// the tracepoint's.
    pub(super) fn tracepoint_arguments(&self, name: &str) -> Option<Vec<String>> {
        let types = self.0.resolve_types_by_name(&format!("btf_trace_{name}")).ok()?;
        let handler = types.iter().find(|found| matches!(found, Type::Typedef(_)))?;
        let mut arguments = self.arguments_behind(handler)?;
        if arguments.is_empty() {
            return None;
        }
        arguments.remove(0);
        Some(arguments)
    }

    /// What the arguments of a function point to, or are.
    pub(super) fn function_arguments(&self, name: &str) -> Option<Vec<String>> {
        let types = self.0.resolve_types_by_name(name).ok()?;
        let function = types.iter().find(|found| matches!(found, Type::Func(_)))?;
        self.arguments_behind(function)
    }

    fn arguments_behind(&self, start: &Type) -> Option<Vec<String>> {
        let mut chain = self.0.chained_type_iter(start.as_btf_type()?).take(DEPTH_MAX);
        let prototype = chain.find_map(|found| match found {
            Type::FuncProto(prototype) => Some(prototype),
            _ => None,
        })?;
        let named = prototype.parameters.iter().map(|parameter| {
            self.0
                .chained_type_iter(parameter)
                .take(DEPTH_MAX)
                .find_map(|found| self.name(found.as_btf_type()?).filter(|name| !name.is_empty()))
                .unwrap_or_default()
        });
        Some(named.collect())
    }

    fn structure(&self, name: &str) -> Option<Type> {
        let types = self.0.resolve_types_by_name(name).ok()?;
        types.into_iter().find(|found| matches!(found, Type::Struct(_)))
    }

    /// A member of a structure or union, with its offset there.
    fn member(&self, of: &Type, name: &str, depth_left: usize) -> Option<(Member, u32)> {
        let (Type::Struct(outer) | Type::Union(outer)) = of else { return None };
        for member in &outer.members {
            let offset = member.bit_offset() / 8;
            let member_name = self.name(member).unwrap_or_default();
            if member_name == name {
                return Some((member.clone(), offset));
            }
            if member_name.is_empty() && depth_left > 0 {
                let inner = self.resolve(member)?;
                if let Some((found, inner_offset)) = self.member(&inner, name, depth_left - 1) {
                    return Some((found, offset + inner_offset));
                }
            }
        }
        None
    }

    /// The type behind qualifiers and typedefs.
    fn resolve(&self, of: &dyn BtfType) -> Option<Type> {
        self.0.chained_type_iter(of).take(DEPTH_MAX).find(|found| {
            !matches!(
                found,
                Type::Typedef(_)
                    | Type::Const(_)
                    | Type::Volatile(_)
                    | Type::Restrict(_)
                    | Type::TypeTag(_)
            )
        })
    }

    fn size_of(&self, of: &Type, depth_left: usize) -> Option<u32> {
        let size = match of {
            Type::Int(found) => found.size(),
            Type::Struct(found) | Type::Union(found) => found.size(),
            Type::Enum(found) => found.size(),
            Type::Enum64(found) => found.size(),
            Type::Ptr(_) => size_of::<u64>(),
            Type::Array(found) if depth_left > 0 => {
                let element = self.size_of(&self.resolve(found)?, depth_left - 1)?;
                return element.checked_mul(u32::try_from(found.len()).ok()?);
            }
            _ => return None,
        };
        u32::try_from(size).ok()
    }

    fn name(&self, of: &dyn BtfType) -> Option<String> {
        self.0.resolve_name(of).ok()
    }
}
