//! Kernel addresses to names, as the kernel itself prints them: `symbol+0x1a/0x2b0 [btrfs]`.

use std::{fs, io, ops::Range, sync::Arc};

const KALLSYMS: &str = "/proc/kallsyms";
const MODULES: &str = "/proc/modules";

/// What is printed for an address that no symbol covers.
const NOTHING: &str = "0x0";

/// No function is longer; what lies farther behind the last symbol of a module is not its.
const SYMBOL_LEN_MAX_BYTES: u64 = 1 << 20;

/// The symbols of the running kernel, read again when modules come or go.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    table: Table,
    /// `/proc/modules` when the table was read.
    modules: Option<String>,
}

impl Symbols {
    /// Names each address, in the order given.
    pub(super) fn name_all(&mut self, addresses: &[u64]) -> Vec<(u64, Arc<str>)> {
        if let Err(error) = self.refresh() {
            tracing::warn!("cannot read the kernel's symbols from {KALLSYMS}: {error}");
        }
        addresses.iter().map(|&address| (address, self.table.name(address))).collect()
    }

    /// Where the functions lie whose names begin with one of `prefixes`; nothing where
    /// addresses are hidden.
    pub(super) fn ranges_of(&mut self, prefixes: &[&str]) -> io::Result<Vec<Range<u64>>> {
        self.refresh()?;
        Ok(self.table.ranges_of(prefixes))
    }

    fn refresh(&mut self) -> io::Result<()> {
        // A kernel without modules has no such file, and its symbols never change.
        let modules = fs::read_to_string(MODULES).unwrap_or_default();
        // The use counts in it change all the time; what is loaded where does not.
        let modules = loaded_modules(&modules);
        if self.modules.as_ref() == Some(&modules) {
            return Ok(());
        }
        self.table = Table::parse(&fs::read_to_string(KALLSYMS)?);
        self.modules = Some(modules);
        Ok(())
    }
}

/// Names and addresses of `/proc/modules`, without the counts.
fn loaded_modules(modules: &str) -> String {
    let mut loaded = String::new();
    for line in modules.lines() {
        let mut words = line.split(' ');
        loaded.push_str(words.next().unwrap_or_default());
        loaded.push(' ');
        loaded.push_str(words.find(|word| word.starts_with("0x")).unwrap_or_default());
        loaded.push('\n');
    }
    loaded
}

/// One function.
#[derive(Debug)]
struct Symbol {
    address: u64,
    name: Box<str>,
    /// Index into [`Table::modules`]; none for the kernel proper.
    module: Option<u32>,
}

/// The functions of the kernel by address.
#[derive(Debug, Default)]
struct Table {
    symbols: Vec<Symbol>,
    modules: Vec<Box<str>>,
}

impl Table {
    /// Parses `/proc/kallsyms`: `address type name[<tab>[module]]`. Lines that are not so are
    /// skipped; so is everything where addresses are hidden (`kptr_restrict`).
    fn parse(kallsyms: &str) -> Self {
        let mut table = Self::default();
        for line in kallsyms.lines() {
            table.add(line);
        }
        // Of several names for one address the kernel prints the first.
        table.symbols.sort_by_key(|symbol| symbol.address);
        table.symbols.dedup_by_key(|symbol| symbol.address);
        table
    }

    fn add(&mut self, line: &str) -> Option<()> {
        let mut words = line.split_ascii_whitespace();
        let address =
            u64::from_str_radix(words.next()?, 16).ok().filter(|&address| address != 0)?;
        // Code only: t and T, or w and W when it is weak.
        let _code = words.next().filter(|kind| matches!(*kind, "t" | "T" | "w" | "W"))?;
        let name = words.next()?.into();
        let module = words.next().map(|module| self.module(module.trim_matches(['[', ']'])));
        self.symbols.push(Symbol { address, name, module });
        Some(())
    }

    /// Symbols of a module follow each other, so the last one is nearly always it.
    fn module(&mut self, name: &str) -> u32 {
        let found = self.modules.iter().rposition(|module| **module == *name);
        let index = found.unwrap_or_else(|| {
            self.modules.push(name.into());
            self.modules.len() - 1
        });
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    fn ranges_of(&self, prefixes: &[&str]) -> Vec<Range<u64>> {
        let is_meant = |symbol: &Symbol| prefixes.iter().any(|it| symbol.name.starts_with(it));
        let pairs = self.symbols.windows(2).filter(|pair| is_meant(&pair[0]));
        pairs.map(|pair| pair[0].address..pair[1].address).collect()
    }

    fn name(&self, address: u64) -> Arc<str> {
        self.lookup(address).unwrap_or_else(|| Arc::from(NOTHING))
    }

    fn lookup(&self, address: u64) -> Option<Arc<str>> {
        let after = self.symbols.partition_point(|symbol| symbol.address <= address);
        let symbol = self.symbols.get(after.checked_sub(1)?)?;
        let offset = address - symbol.address;
        let next = self.symbols.get(after).map_or(u64::MAX, |next| next.address);
        let len_bytes = next - symbol.address;
        if offset >= SYMBOL_LEN_MAX_BYTES {
            return None;
        }
        // Behind the last symbol of a section lies a gap; the kernel ends the symbol with the
        // section, whose end is not shown to us: the end of the page is the nearest guess.
        let len_bytes = if len_bytes > SYMBOL_LEN_MAX_BYTES {
            (address | 0xfff) + 1 - symbol.address
        } else {
            len_bytes
        };
        let name = &symbol.name;
        let module = symbol.module.and_then(|index| self.modules.get(usize::try_from(index).ok()?));
        Some(Arc::from(match module {
            Some(module) => format!("{name}+{offset:#x}/{len_bytes:#x} [{module}]"),
            None => format!("{name}+{offset:#x}/{len_bytes:#x}"),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KALLSYMS: &str = "\
ffffffff81000000 T _stext
ffffffff81000100 t alias_of_work
ffffffff81000100 T do_work
ffffffff81000200 D some_data
ffffffff81000300 W weak_function
ffffffff81000400 T _etext
ffffffffc0401000 t btrfs_free_extent\t[btrfs]
ffffffffc04012b0 T btrfs_inc_extent_ref\t[btrfs]
ffffffffc0500000 t lz4_compress\t[lz4]
";

    fn name(address: u64) -> String {
        Table::parse(KALLSYMS).name(address).to_string()
    }

    #[test]
    fn names_are_written_as_the_kernel_writes_them() {
        assert_eq!(name(0xffff_ffff_c040_101a), "btrfs_free_extent+0x1a/0x2b0 [btrfs]");
        assert_eq!(name(0xffff_ffff_8100_0001), "_stext+0x1/0x100");
    }

    #[test]
    fn of_two_names_for_one_address_the_first_is_taken_and_data_is_no_code() {
        assert_eq!(name(0xffff_ffff_8100_0150), "alias_of_work+0x50/0x200");
        assert_eq!(name(0xffff_ffff_8100_0210), "alias_of_work+0x110/0x200");
    }

    #[test]
    fn an_address_far_from_any_symbol_or_before_all_gets_no_name() {
        assert_eq!(name(0x1000), "0x0");
        assert_eq!(name(0xffff_ffff_a000_0000), "0x0");
        assert_eq!(name(u64::MAX), "0x0");
    }

    #[test]
    fn the_last_symbol_before_a_gap_ends_with_its_page() {
        assert_eq!(name(0xffff_ffff_c050_0010), "lz4_compress+0x10/0x1000 [lz4]");
    }

    #[test]
    fn ranges_reach_from_a_symbol_to_the_next() {
        let table = Table::parse(KALLSYMS);
        let ranges = table.ranges_of(&["btrfs_free", "no_such"]);
        assert!(ranges.iter().eq([&(0xffff_ffff_c040_1000..0xffff_ffff_c040_12b0)]), "{ranges:x?}");
    }

    #[test]
    fn hidden_addresses_and_garbage_make_an_empty_table() {
        let hidden = "0000000000000000 T _stext\nnot a line\n\nffff T\n";
        assert!(Table::parse(hidden).symbols.is_empty());
    }

    #[test]
    fn a_changed_use_count_is_no_reason_to_read_all_symbols_again() {
        let before = "btrfs 1667072 1 - Live 0xffffffffc0401000\n";
        let used = "btrfs 1667072 2 - Live 0xffffffffc0401000\n";
        let reloaded = "btrfs 1667072 1 - Live 0xffffffffc0601000\n";
        assert_eq!(loaded_modules(before), loaded_modules(used));
        assert_ne!(loaded_modules(before), loaded_modules(reloaded));
    }
}
