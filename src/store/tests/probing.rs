//! What is recognised on a device.

use super::*;

const SIZE: u64 = 64 << 20;

fn with(places: &[(u64, &[u8])]) -> Probe {
    let sim = SimDevice::new(512, SIZE);
    for (offset, bytes) in places {
        sim.poke(*offset, bytes);
    }
    probe(&sim).unwrap()
}

#[track_caller]
fn expect(what: &str, places: &[(u64, &[u8])]) {
    match with(places) {
        Probe::Foreign { what: found } => assert!(found.contains(what), "{found}, not {what}"),
        found => panic!("{found:?} instead of {what}"),
    }
}

const MD: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];
const EXT: (u64, &[u8]) = (1024 + 0x38, &[0x53, 0xef]);

#[test]
fn signatures_are_recognised() {
    expect("ext2", &[EXT]);
    expect("ext3", &[EXT, (1024 + 0x5c, &[4])]);
    expect("ext4", &[EXT, (1024 + 0x5c, &[4]), (1024 + 0x60, &[0x42])]);
    expect("XFS", &[(0, b"XFSB")]);
    expect("btrfs", &[(0x1_0040, b"_BHRfS_M")]);
    expect("swap", &[(4086, b"SWAPSPACE2")]);
    expect("LUKS", &[(0, b"LUKS\xba\xbe\0\x02")]);
    expect("LVM2", &[(512, b"LABELONE")]);
    expect("GUID", &[(510, &[0x55, 0xaa]), (512, b"EFI PART")]);
    expect("GUID", &[(4096, b"EFI PART")]);
    expect("GUID", &[(SIZE - 512, b"EFI PART")]);
    expect("md 1.0", &[(SIZE - 8192, MD)]);
    expect("md 1.1", &[(0, MD)]);
    expect("md 1.2", &[(4096, MD)]);
    expect("md 0.90", &[(SIZE - (64 << 10), MD)]);
    expect("blobstore", &[(0, b"SPDKBLOB")]);
    expect("ISO 9660", &[(0x8001, b"CD001")]);
    expect("squashfs", &[(0, b"hsqs")]);
    expect("BlueStore", &[(0, b"bluestore block device\n")]);
    expect("VFAT", &[(82, b"FAT32   "), (510, &[0x55, 0xaa])]);
    expect("VFAT", &[(54, b"FAT16   "), (510, &[0x55, 0xaa])]);
    expect("NTFS", &[(3, b"NTFS    "), (510, &[0x55, 0xaa])]);
    expect("boot sector", &[(510, &[0x55, 0xaa])]);
    let entry = [0x80, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0];
    expect("DOS partition", &[(446, &entry), (510, &[0x55, 0xaa])]);
    let uberblock = 0x00ba_b10c_u64.to_le_bytes();
    expect("ZFS", &[((128 << 10) + 4096, &uberblock)]);
    expect("ZFS", &[(SIZE - (256 << 10) + (128 << 10), &uberblock)]);
    expect("ZFS", &[(SIZE - (512 << 10) + (132 << 10), &0x00ba_b10c_u64.to_be_bytes())]);
}

#[test]
fn data_without_a_signature_is_nothing() {
    assert_eq!(with(&[]), Probe::Nothing);
    assert_eq!(with(&[(0, &[0x11; 10_000]), (SIZE - 10_000, &[0x22; 10_000])]), Probe::Nothing);
    for size in [512, 1024, 4096, 64 << 10, 300 << 10] {
        assert_eq!(probe(&SimDevice::new(512, size)).unwrap(), Probe::Nothing);
    }
}

#[test]
fn a_foreign_device_is_formatted_only_by_force_and_then_not_foreign_any_more() {
    for (offset, bytes) in [(0, &b"XFSB"[..]), (SIZE - 8192, MD), (SIZE - 512, b"EFI PART")] {
        let sim = Arc::new(SimDevice::new(512, SIZE));
        sim.poke(offset, bytes);
        let shared: SharedDevice = sim.clone();
        let error = format(&shared, &options(false)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Occupied);
        assert_eq!(sim.operations(), 0, "nothing was written");
        let error = load(&shared).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotAStore);
        assert!(error.to_string().contains("signature of"), "{error}");
        drop(format(&shared, &options(true)).unwrap());
        Superblock::wipe(&*shared).unwrap();
        assert_eq!(probe(&*shared).unwrap(), Probe::Nothing);
    }
}
