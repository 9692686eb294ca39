//! Links little programs, as real linkers do: what moves is told everywhere. Sections and layouts are those of real
//! files; the instructions between the references are noise.

/// One function: which others it calls, and which words of the data it uses.
#[derive(Clone)]
pub(crate) struct Function {
    pub(crate) name: u32,
    pub(crate) length: usize,
    pub(crate) calls: Vec<u32>,
}

/// A program of `count` functions; names are numbers.
pub(crate) fn program(count: u32) -> Vec<Function> {
    let one = |name: u32| {
        let calls = (1..6).map(|step| name.wrapping_mul(7).wrapping_add(step * 31) % count).collect();
        Function { name, length: 160 + (name as usize * 37) % 200, calls }
    };
    (0..count).map(one).collect()
}

/// The same program a version later: a new function in the middle, another one longer, one gone.
pub(crate) fn next_version(program: &[Function]) -> Vec<Function> {
    let mut next = program.to_vec();
    let count = next.len() as u32;
    next[program.len() / 4].length += 48;
    next.remove(program.len() * 3 / 4);
    let gone = program[program.len() * 3 / 4].name;
    for function in &mut next {
        function.calls.iter_mut().filter(|call| **call == gone).for_each(|call| *call = 0);
    }
    next.insert(program.len() / 2, Function { name: count, length: 400, calls: vec![1, 2, 3] });
    next
}

fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // No opcodes that are references, nor ModRM bytes of operands relative to the instruction.
        (state >> 32) as u8 & 0x72
    })
}

struct Section {
    name: &'static str,
    kind: u32,
    flags: u64,
    address: u64,
    info: u32,
    bytes: Vec<u8>,
}

fn section(name: &'static str, kind: u32, flags: u64, address: u64, bytes: Vec<u8>) -> Section {
    Section { name, kind, flags, address, info: 0, bytes }
}

/// Where the parts of a program begin in memory.
const TEXT: u64 = 0x1000;
const DATA: u64 = 0x20_0000;
const FRAMES: u64 = 0x10_0000;
const INDEX: u64 = 0x18_0000;

/// A shared object.
pub(crate) fn shared_object(program: &[Function]) -> Vec<u8> {
    let starts = starts(program);
    let address = |name: u32| TEXT + starts[&name];
    let mut text = Vec::new();
    for function in program {
        text.resize(starts[&function.name] as usize, 0xcc);
        let start = text.len();
        text.extend(noise(u64::from(function.name)).take(function.length));
        for (number, call) in function.calls.iter().enumerate() {
            // A call, and the address of a word of data.
            let at = start + 16 + number * 24;
            let here = TEXT + at as u64;
            text[at] = 0xe8;
            text[at + 1..at + 5].copy_from_slice(&(address(*call).wrapping_sub(here + 5) as u32).to_le_bytes());
            let word = DATA + 8 * starts.keys().position(|name| name == call).unwrap() as u64;
            text[at + 8..at + 11].copy_from_slice(&[0x48, 0x8d, 0x05]);
            text[at + 11..at + 15].copy_from_slice(&(word.wrapping_sub(here + 15) as u32).to_le_bytes());
        }
    }
    let (mut data, mut relocations, mut symbols) = (Vec::new(), Vec::new(), vec![0u8; 24]);
    let (mut frames, mut index) = (vec![20, 0, 0, 0], vec![1, 0x1b, 3, 0x3b, 0, 0, 0, 0, 0, 0, 0, 0]);
    frames.resize(24, 0);
    for name in starts.keys() {
        let place = DATA + data.len() as u64;
        data.extend(address(*name).to_le_bytes());
        relocations.extend([place, 8, address(*name)].map(u64::to_le_bytes).concat());
        symbols.extend((1 + name * 8).to_le_bytes());
        symbols.extend([0x12, 0, 1, 0]);
        symbols.extend([address(*name), 160].map(u64::to_le_bytes).concat());
    }
    for function in program {
        let place = FRAMES + frames.len() as u64;
        let distance = address(function.name).wrapping_sub(place + 8) as u32;
        let entry = [20, frames.len() as u32 + 4, distance, function.length as u32, 0, 0];
        frames.extend(entry.map(u32::to_le_bytes).concat());
        let entry = [address(function.name), place].map(|at| (at.wrapping_sub(INDEX) as u32).to_le_bytes());
        index.extend(entry.concat());
    }
    file(
        3,
        vec![
            section(".text", 1, 6, TEXT, text),
            section(".eh_frame", 1, 2, FRAMES, frames),
            section(".eh_frame_hdr", 1, 2, INDEX, index),
            section(".rela.dyn", 4, 2, 0x400, relocations),
            section(".dynsym", 11, 2, 0x200, symbols),
            section(".data", 1, 3, DATA, data),
        ],
    )
}

/// A shared object for aarch64: calls, and addresses of words of data in two instructions.
pub(crate) fn arm64_shared_object(program: &[Function]) -> Vec<u8> {
    let starts = starts(program);
    let mut text: Vec<u8> = Vec::new();
    for function in program {
        let put = |text: &mut Vec<u8>, at: usize, word: u32| text[at..at + 4].copy_from_slice(&word.to_le_bytes());
        text.resize(starts[&function.name] as usize, 0);
        let start = text.len();
        text.extend(0xd503_201f_u32.to_le_bytes().repeat(function.length.div_ceil(4)));
        for (number, call) in function.calls.iter().enumerate() {
            let at = start + 16 + number * 24;
            let distance = (starts[call] as i64 - at as i64) / 4;
            put(&mut text, at, 0x9400_0000 | distance as u32 & 0x3ff_ffff);
            let word = DATA + 8 * starts.keys().position(|name| name == call).unwrap() as u64;
            let pages = (word >> 12) as i64 - ((TEXT + at as u64 + 4) >> 12) as i64;
            let (high, low) = ((pages >> 2) as u32 & 0x7_ffff, pages as u32 & 3);
            put(&mut text, at + 4, 0x9000_0003 | low << 29 | high << 5);
            let second = if number % 2 == 0 { 0x9100_0063 } else { 0xf940_0063 };
            let unit = if number % 2 == 0 { 0 } else { 3 };
            put(&mut text, at + 8, second | (word as u32 & 0xfff) >> unit << 10);
        }
    }
    let data = starts.values().flat_map(|start| (TEXT + start).to_le_bytes()).collect();
    let mut made = file(3, vec![section(".text", 1, 6, TEXT, text), section(".data", 1, 3, DATA, data)]);
    made[18..20].copy_from_slice(&183u16.to_le_bytes());
    made
}

/// Where each function begins in the code.
fn starts(program: &[Function]) -> std::collections::BTreeMap<u32, u64> {
    let mut at = 0u64;
    let place = |function: &Function| {
        let start = at.next_multiple_of(16);
        at = start + function.length as u64;
        (function.name, start)
    };
    program.iter().map(place).collect()
}

/// A kernel module: code with calls inside, relocations against sections, symbols, checksums and types.
pub(crate) fn module(program: &[Function], release: u32) -> Vec<u8> {
    let starts = starts(program);
    let (mut text, mut relocations, mut data) = (Vec::new(), Vec::new(), Vec::new());
    // The first, and those of the sections .text and .data.
    let mut symbols = [[0u8; 24], section_symbol(1), section_symbol(3)].concat();
    for function in program {
        text.resize(starts[&function.name] as usize, 0xcc);
        let start = text.len();
        text.extend(noise(u64::from(function.name)).take(function.length));
        for (number, call) in function.calls.iter().enumerate() {
            let at = start + 16 + number * 24;
            text[at] = 0xe8;
            let distance = starts[call].wrapping_sub(at as u64 + 5) as u32;
            text[at + 1..at + 5].copy_from_slice(&distance.to_le_bytes());
            let addend = (u64::from(*call) * 8).wrapping_sub(4);
            relocations.extend([at as u64 + 11, 2 << 32 | 2, addend].map(u64::to_le_bytes).concat());
        }
    }
    let mut of_data = Vec::new();
    for (name, start) in &starts {
        of_data.extend([data.len() as u64, 1 << 32 | 1, *start].map(u64::to_le_bytes).concat());
        data.extend([0; 8]);
        symbols.extend((1 + name * 8).to_le_bytes());
        symbols.extend([0x12, 0, 1, 0]);
        symbols.extend([*start, 160].map(u64::to_le_bytes).concat());
    }
    let mut versions = Vec::new();
    for number in 0..40u32 {
        let mut entry = u64::from(number.wrapping_mul(0x9e37_79b9 + release)).to_le_bytes().to_vec();
        entry.extend(format!("kernel_symbol_{number}").bytes());
        entry.resize(64, 0);
        versions.extend(entry);
    }
    let mut sections = vec![
        section(".text", 1, 6, 0, text),
        section(".rela.text", 4, 0x40, 0, relocations),
        section(".data", 1, 3, 0, data),
        section(".rela.data", 4, 0x40, 0, of_data),
        section(".symtab", 2, 0, 0, symbols),
        section("__versions", 1, 2, 0, versions),
        section(".BTF", 1, 0, 0, types(1000 * release)),
    ];
    (sections[1].info, sections[3].info) = (1, 3);
    file(1, sections)
}

/// Where a kernel's parts begin in memory.
const KERNEL: u64 = 0xffff_ffff_8100_0000;
const SYMBOLS: u64 = KERNEL + 0x40_0000;
const TABLE: u64 = KERNEL + 0x60_0000;
const TYPES: u64 = KERNEL + 0x70_0000;

/// A kernel as it is packed into its image: absolute addresses in its code and the places where these are, the addresses of
/// its symbols, a table relative to itself, and many types. `more` of these are there before the others.
pub(crate) fn kernel(program: &[Function], more: u32) -> Vec<u8> {
    let starts = starts(program);
    let (mut text, mut places) = (Vec::new(), Vec::new());
    for function in program {
        text.resize(starts[&function.name] as usize, 0xcc);
        let start = text.len();
        text.extend(noise(u64::from(function.name)).take(function.length));
        for (number, call) in function.calls.iter().enumerate() {
            let at = start + 16 + number * 24;
            text[at..at + 3].copy_from_slice(&[0x48, 0xc7, 0xc7]);
            text[at + 3..at + 7].copy_from_slice(&((KERNEL + starts[call]) as u32).to_le_bytes());
            places.extend(((KERNEL + at as u64 + 3) as u32).to_le_bytes());
        }
    }
    let (mut symbols, mut table) = (vec![0x55; 64], Vec::new());
    let mut sorted: Vec<_> = starts.values().flat_map(|start| (0..10).map(move |step| start + step * 14)).collect();
    sorted.sort_unstable();
    for start in &sorted {
        symbols.extend((!(*start as u32)).to_le_bytes());
        table.extend(((KERNEL + start).wrapping_sub(TABLE + table.len() as u64) as u32).to_le_bytes());
    }
    symbols.extend([0x55; 64]);
    let mut kernel = file(
        2,
        vec![
            section(".text", 1, 6, KERNEL, text),
            section(".rodata", 1, 3, SYMBOLS, symbols),
            section(".orc_unwind_ip", 1, 2, TABLE, table),
            section(".BTF", 1, 2, TYPES, kernel_types(more)),
            section(".init.scratch", 1, 3, TYPES + 0x10_0000, vec![0; 300_000]),
        ],
    );
    kernel.extend(places);
    kernel
}

/// Where a kernel for aarch64 is in memory.
const FLAT: u64 = 0xffff_8000_0800_0000;

/// A kernel for aarch64 as it is started: header, calls, the places that hold addresses, the offsets of its symbols, and
/// types. `more` of these are there before the others.
pub(crate) fn flat_kernel(program: &[Function], more: u32) -> Vec<u8> {
    let starts = starts(program);
    let mut kernel = vec![0u8; 0x1_0000];
    kernel[56..60].copy_from_slice(b"ARM\x64");
    let at_start = kernel.len();
    for function in program {
        kernel.resize(at_start + starts[&function.name] as usize, 0);
        let start = kernel.len();
        kernel.extend(0xd503_201f_u32.to_le_bytes().repeat(function.length.div_ceil(4)));
        for (number, call) in function.calls.iter().enumerate() {
            let at = start + 16 + number * 24;
            let distance = ((at_start as u64 + starts[call]) as i64 - at as i64) / 4;
            kernel[at..at + 4].copy_from_slice(&(0x9400_0000 | distance as u32 & 0x3ff_ffff).to_le_bytes());
        }
    }
    kernel.resize(0x8_0000, 0);
    let mut offsets: Vec<_> = starts.values().flat_map(|start| (0..5).map(move |step| start + step * 14)).collect();
    offsets.sort_unstable();
    for (number, offset) in offsets.iter().enumerate() {
        let place = FLAT + 0xc_0000 + number as u64 * 8;
        kernel.extend([place, 1027, FLAT + at_start as u64 + offset].map(u64::to_le_bytes).concat());
    }
    kernel.extend([0xee; 64]);
    for offset in &offsets {
        kernel.extend((at_start as u32 + *offset as u32).to_le_bytes());
    }
    kernel.extend([0xee; 64]);
    kernel.extend(kernel_types(more));
    kernel.resize(0x12_0000, 0);
    // The first thing that is led to is the kernel's first byte.
    kernel[0x8_0010..0x8_0018].copy_from_slice(&FLAT.to_le_bytes());
    kernel
}

/// Pointers and structures in turn, each structure with a name of its own and a member of the type before.
fn kernel_types(more: u32) -> Vec<u8> {
    let (mut types, mut strings, mut count) = (Vec::new(), vec![0u8], 0u32);
    for number in (5000..5000 + more).chain(0..1500) {
        let (name, last) = (strings.len() as u32, count);
        strings.extend(format!("structure_{number}\0").bytes());
        types.extend([0, 2 << 24, last].map(u32::to_le_bytes).concat());
        types.extend([name, 4 << 24 | 1, 8, name, count + 1, 0].map(u32::to_le_bytes).concat());
        count += 2;
    }
    let words = [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32];
    [&[0x9f, 0xeb, 1, 0][..], &words.map(u32::to_le_bytes).concat(), &types, &strings].concat()
}

fn section_symbol(section: u16) -> [u8; 24] {
    let mut symbol = [0; 24];
    symbol[4] = 3;
    symbol[6..8].copy_from_slice(&section.to_le_bytes());
    symbol
}

/// Types of a module, the first of which has the number `first`: pointers and structures in turn.
fn types(first: u32) -> Vec<u8> {
    let mut types = Vec::new();
    for number in 0..200u32 {
        let before = first + number / 2;
        if number % 2 == 0 {
            types.extend([0, 2 << 24, before].map(u32::to_le_bytes).concat());
        } else {
            types.extend([1, 4 << 24 | 1, 8, 1, before, 0].map(u32::to_le_bytes).concat());
        }
    }
    let strings = b"\0name\0";
    let words = [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32];
    [&[0x9f, 0xeb, 1, 0][..], &words.map(u32::to_le_bytes).concat(), &types, strings].concat()
}

/// An ELF file: header, sections, their names, their headers.
fn file(form: u16, mut sections: Vec<Section>) -> Vec<u8> {
    let mut names = vec![0u8];
    let mut headers = vec![0u8; 64];
    // Blocks of zeroes, which some file systems do not store.
    let mut bytes = vec![0u8; 0x4000];
    sections.push(section(".shstrtab", 3, 0, 0, Vec::new()));
    let last = sections.len() - 1;
    let all: Vec<_> = sections.iter().flat_map(|section| section.name.bytes().chain([0])).collect();
    sections[last].bytes = [&[0][..], &all].concat();
    for section in &sections {
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        headers.extend((names.len() as u32).to_le_bytes());
        headers.extend(section.kind.to_le_bytes());
        let words = [section.flags, section.address, bytes.len() as u64, section.bytes.len() as u64];
        headers.extend(words.map(u64::to_le_bytes).concat());
        headers.extend(0u32.to_le_bytes());
        headers.extend(section.info.to_le_bytes());
        headers.extend([16u64, 0].map(u64::to_le_bytes).concat());
        names.extend(section.name.bytes().chain([0]));
        bytes.extend(&section.bytes);
    }
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    let at = bytes.len() as u64;
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    bytes[16..18].copy_from_slice(&form.to_le_bytes());
    bytes[18..20].copy_from_slice(&62u16.to_le_bytes());
    bytes[40..48].copy_from_slice(&at.to_le_bytes());
    let count = sections.len() as u16;
    for (place, value) in [(58, 64), (60, count + 1), (62, count)] {
        bytes[place..place + 2].copy_from_slice(&value.to_le_bytes());
    }
    bytes.extend(headers);
    bytes
}
