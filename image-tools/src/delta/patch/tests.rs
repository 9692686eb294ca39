use super::*;
use crate::limits::MAX_ZSTD_WINDOW_BYTES;

const SOURCE: &[u8] = b"0123456789abcdef";

/// A frame, or nothing for nothing.
fn part(content: &[u8]) -> Vec<u8> {
    if content.is_empty() { Vec::new() } else { zstd::bulk::compress(content, 3).unwrap() }
}

fn joined(control: &[u8], differences: &[u8], new: &[u8]) -> Vec<u8> {
    let mut patch = Vec::new();
    varint::push(&mut patch, control.len() as u64);
    varint::push(&mut patch, differences.len() as u64);
    [&patch, control, differences, new].concat()
}

/// The control stream of operations (seek, copy, new).
fn control(operations: &[(i64, u64, u64)]) -> Vec<u8> {
    let mut control = Vec::new();
    operations.iter().for_each(|&(seek, copy, new)| Operation { seek, copy, new }.push_to(&mut control));
    control
}

/// A patch of operations (seek, copy, new), with zeroes for differences and `x` for new bytes, so many as are given.
fn patch(operations: &[(i64, u64, u64)], differences: usize, new: usize) -> Vec<u8> {
    joined(&part(&control(operations)), &part(&vec![0; differences]), &part(&vec![b'x'; new]))
}

/// What comes out where `len` bytes should.
fn apply(patch: &[u8], len: usize) -> Result<Vec<u8>, Fault> {
    let mut room = vec![0xee; len + 100];
    let applied = Patcher::default().apply(patch, SOURCE, &mut room[..len]);
    assert!(room[len..].iter().all(|byte| *byte == 0xee), "wrote behind the output");
    applied.map(|()| room[..len].to_vec())
}

#[test]
fn operations_copy_differ_add_and_seek_both_ways() {
    assert_eq!(apply(&patch(&[(2, 3, 1), (-1, 2, 0), (9, 1, 2)], 6, 3), 9).unwrap(), b"234x45fxx");
    let differing = joined(&part(&control(&[(0, 3, 0)])), &part(&[1, 0, 255]), &[]);
    assert_eq!(apply(&differing, 3).unwrap(), b"111");
    assert_eq!(apply(&patch(&[(16, 0, 2)], 0, 2), 2).unwrap(), b"xx");
    assert_eq!(apply(&joined(&[], &[], &[]), 0).unwrap(), b"");
}

#[test]
fn a_patch_cut_off_anywhere_is_refused() {
    let whole = patch(&[(2, 3, 1), (-1, 2, 0)], 5, 1);
    assert!(apply(&whole, 6).is_ok());
    for cut in 0..whole.len() {
        assert!(apply(&whole[..cut], 6).is_err(), "cut at {cut}");
    }
    for length in [1 << 20, 1 << 32, u64::MAX] {
        let mut announced = Vec::new();
        varint::push(&mut announced, length);
        varint::push(&mut announced, 0);
        assert_eq!(apply(&announced, 6), Err("its patch is cut off"));
        announced.clear();
        varint::push(&mut announced, 0);
        varint::push(&mut announced, length);
        assert_eq!(apply(&announced, 6), Err("its patch is cut off"));
    }
}

/// The kind of CVE-2014-9862: control values that are negative, or whose sums are, led bspatch to write before and
/// behind its buffers.
#[test]
fn places_before_the_source_and_lengths_that_were_negative_are_refused() {
    let before = Err("an operation reads before the source");
    assert_eq!(apply(&patch(&[(-1, 1, 0)], 1, 0), 1), before);
    assert_eq!(apply(&patch(&[(0, 1, 0), (-2, 1, 0)], 2, 0), 2), before);
    assert_eq!(apply(&patch(&[(i64::MIN, 1, 0)], 1, 0), 1), before);
    assert_eq!(apply(&patch(&[(4, 0, 1), (i64::MIN, 0, 1)], 0, 2), 2), before);
    for negative in [-1i64, -8, i64::MIN, i64::from(i32::MIN)] {
        let length = negative as u64;
        assert_eq!(apply(&patch(&[(0, length, 0)], 8, 8), 8), Err("it makes more than the output"));
        assert_eq!(apply(&patch(&[(0, 0, length)], 8, 8), 8), Err("it makes more than the output"));
        assert_eq!(apply(&patch(&[(0, 4, length)], 8, 8), 8), Err("it makes more than the output"));
        // Sums that come back to the right length.
        assert!(apply(&patch(&[(0, length, 0), (0, 8u64.wrapping_sub(length), 0)], 8, 0), 8).is_err());
        assert!(apply(&patch(&[(0, length, 8u64.wrapping_sub(length))], 8, 8), 8).is_err());
    }
}

/// The kind of CVE-2020-14315: lengths so great that a sum with them overflows and passes the check.
#[test]
fn places_behind_the_source_and_sums_that_overflow_are_refused() {
    let behind = Err("an operation reads behind the source");
    assert!(apply(&patch(&[(15, 1, 0)], 1, 0), 1).is_ok());
    assert_eq!(apply(&patch(&[(16, 1, 0)], 1, 0), 1), behind);
    assert_eq!(apply(&patch(&[(15, 2, 0)], 2, 0), 2), behind);
    assert_eq!(apply(&patch(&[(17, 0, 1)], 0, 1), 1), behind);
    assert_eq!(apply(&patch(&[(i64::MAX, 1, 0)], 1, 0), 1), behind);
    assert_eq!(apply(&patch(&[(i64::MAX, 0, 1), (i64::MAX, 0, 1), (2, 1, 0)], 1, 2), 3), behind);
    for huge in [9, 1 << 31, 1 << 32, (1 << 63) - 1, u64::MAX - 7, u64::MAX] {
        assert_eq!(apply(&patch(&[(8, huge, 0)], 8, 8), 8), Err("it makes more than the output"), "{huge}");
        assert_eq!(apply(&patch(&[(0, 0, huge)], 8, 8), 8), Err("it makes more than the output"), "{huge}");
        assert!(apply(&patch(&[(0, 1, huge)], 8, 8), 8).is_err(), "{huge}");
    }
}

#[test]
fn the_output_the_differences_and_the_new_bytes_are_used_up_exactly() {
    assert!(apply(&patch(&[(0, 4, 4)], 4, 4), 8).is_ok());
    assert_eq!(apply(&patch(&[(0, 4, 4)], 4, 4), 9), Err("its patch makes another length"));
    assert_eq!(apply(&patch(&[(0, 4, 4)], 4, 4), 7), Err("it makes more than the output"));
    assert_eq!(apply(&patch(&[(0, 4, 4)], 5, 4), 8), Err("its patch makes another length"));
    assert_eq!(apply(&patch(&[(0, 4, 4)], 4, 5), 8), Err("its patch makes another length"));
    assert_eq!(apply(&patch(&[(0, 4, 4)], 3, 4), 8), Err("its differences end early"));
    assert_eq!(apply(&patch(&[(0, 4, 4)], 4, 3), 8), Err("its new bytes end early"));
    assert_eq!(apply(&patch(&[(0, 9, 0)], 8, 0), 8), Err("it makes more than the output"));
    assert_eq!(apply(&patch(&[], 0, 0), 1), Err("its patch makes another length"));
}

#[test]
fn an_operation_that_makes_nothing_is_refused_so_that_work_is_bounded_by_the_output() {
    assert_eq!(apply(&patch(&[(0, 0, 0), (0, 1, 0)], 1, 0), 1), Err("an operation makes nothing"));
    let many = vec![(0, 0, 0); 80_000];
    assert_eq!(apply(&patch(&many, 0, 0), 0), Err("an operation makes nothing"));
}

#[test]
fn a_control_stream_cut_off_inside_an_operation_is_refused() {
    let whole = control(&[(300, 1, 0)]);
    for cut in 1..whole.len() {
        let patch = joined(&part(&whole[..cut]), &part(&[0]), &[]);
        assert_eq!(apply(&patch, 1), Err("its control stream is cut off"), "cut at {cut}");
    }
    let endless = joined(&part(&[0xff; 40]), &[], &[]);
    assert_eq!(apply(&endless, 1), Err("its control stream is cut off"));
}

/// A frame of one raw block that states `stated` bytes and, where a window is given, its logarithm.
fn frame(content: &[u8], stated: u32, window: Option<u8>) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, if window.is_some() { 0b1000_0000 } else { 0b1010_0000 }];
    frame.extend(window.map(|log| (log - 10) << 3));
    frame.extend(stated.to_le_bytes());
    let header = (content.len() as u32) << 3 | 1;
    frame.extend(&header.to_le_bytes()[..3]);
    frame.extend(content);
    frame
}

/// Claim D9: what is announced costs nothing.
#[test]
fn four_billion_announced_operations_or_bytes_are_refused_without_memory_or_time() {
    let announced = [
        joined(&frame(&[0; 60], u32::MAX, None), &[], &[]),
        joined(&frame(&[0; 60], MAX_CONTROL_BYTES + 1, None), &[], &[]),
        joined(&[], &frame(&[0; 60], u32::MAX, None), &[]),
        joined(&[], &[], &frame(&[0; 60], u32::MAX, None)),
        joined(&frame(&control(&[(0, 1 << 32, 0)]), 11, None), &[], &[]),
        joined(&frame(&control(&[(0, 0, 1 << 32)]), 11, None), &[], &[]),
    ];
    for patch in announced {
        assert!(patch.len() <= 100);
        let mut patcher = Patcher::default();
        let took = (0..5).map(|_| {
            let started = std::time::Instant::now();
            assert!(patcher.apply(&patch, SOURCE, &mut [0; 4096]).is_err());
            started.elapsed()
        });
        let took = took.min().unwrap();
        assert!(took.as_micros() < 1000, "{took:?}");
        let memory = [&patcher.control, &patcher.differences, &patcher.new].map(Vec::capacity);
        assert!(memory.iter().sum::<usize>() < 64 << 10, "{memory:?}");
    }
}

/// Claim D10.
#[test]
fn parts_are_one_plain_frame_of_a_bounded_window_and_length() {
    let good = control(&[(0, 0, 4)]);
    let fresh = frame(b"four", 4, None);
    let with = |control: &[u8], differences: &[u8], new: &[u8]| apply(&joined(control, differences, new), 4);
    assert_eq!(with(&part(&good), &[], &fresh).unwrap(), b"four");
    assert_eq!(with(&part(&good), &[], &frame(b"four", 4, Some(23))).unwrap(), b"four");
    const { assert!(MAX_ZSTD_WINDOW_BYTES == 1 << 23) };
    for log in [24, 27, 31] {
        assert_eq!(
            with(&part(&good), &[], &frame(b"four", 4, Some(log))),
            Err("its frame asks for too large a window")
        );
        let control = frame(&good, good.len() as u32, Some(log));
        assert_eq!(with(&control, &[], &fresh), Err("its frame asks for too large a window"));
    }
    assert!(with(&part(&good), &[], &frame(b"four", 4, Some(41))).is_err());
    let skippable = [&0x184D_2A50_u32.to_le_bytes()[..], &[4, 0, 0, 0], b"skip"].concat();
    let odd = [
        [&fresh[..], &fresh].concat(),
        [&skippable[..], &fresh].concat(),
        [&fresh[..], &skippable].concat(),
        [&fresh[..], &[0]].concat(),
        frame(b"four", 3, None),
        frame(b"four", 5, None),
        frame(b"more than four", 4, None),
        b"four".to_vec(),
    ];
    for new in odd {
        assert!(with(&part(&good), &[], &new).is_err(), "{new:02x?}");
    }
    let mut dictionary = fresh.clone();
    dictionary[4] |= 1;
    dictionary.insert(5, 7);
    assert_eq!(with(&part(&good), &[], &dictionary), Err("its frame asks for a dictionary"));
}

#[test]
fn a_bomb_is_refused_before_it_is_unpacked() {
    let bomb = part(&vec![0; 16 << 20]);
    assert!(bomb.len() < 2048);
    let too_great = "a part of its patch does not state its length, or too great a one";
    for patch in [joined(&bomb, &[], &[]), joined(&[], &bomb, &[]), joined(&[], &[], &bomb)] {
        let mut patcher = Patcher::default();
        assert_eq!(patcher.apply(&patch, SOURCE, &mut [0; 4096]), Err(too_great));
        assert_eq!([&patcher.control, &patcher.differences, &patcher.new].map(Vec::capacity), [0; 3]);
    }
    // As long as the output, and one byte longer.
    let fits = |len: usize| apply(&joined(&[], &part(&vec![0; len]), &[]), 4096);
    assert_eq!(fits(4096), Err("its patch makes another length"));
    assert_eq!(fits(4097), Err(too_great));
    let fits = |len: usize| apply(&joined(&[], &[], &part(&vec![0; len])), 4096);
    assert_eq!(fits(4096), Err("its patch makes another length"));
    assert_eq!(fits(4097), Err(too_great));
    let fits = |len: u32| apply(&joined(&part(&vec![0; len as usize]), &[], &[]), 4096);
    assert_eq!(fits(MAX_CONTROL_BYTES), Err("an operation makes nothing"));
    assert_eq!(fits(MAX_CONTROL_BYTES + 1), Err(too_great));
}

#[test]
fn a_patcher_keeps_nothing_from_one_patch_to_the_next() {
    let mut patcher = Patcher::default();
    let mut out = [0; 8];
    patcher.apply(&patch(&[(0, 4, 4)], 4, 4), SOURCE, &mut out).unwrap();
    assert_eq!(patcher.apply(&joined(&[], &[], &[]), SOURCE, &mut out), Err("its patch makes another length"));
    assert_eq!(patcher.apply(&patch(&[(0, 4, 4)], 0, 0), SOURCE, &mut out), Err("its differences end early"));
}
