// SPDX-License-Identifier: MIT OR Apache-2.0

//! Float32 arrays out of an .npz that `numpy.savez` wrote: a zip with one .npy per array, nothing compressed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

pub struct Npz {
    file: File,
    length: u64,
    members: BTreeMap<String, Member>,
}

#[derive(Clone, Copy)]
struct Member {
    method: u16,
    size: u64,
    local_header: u64,
}

pub struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f32>, // in C order: the last index moves fastest
}

impl Npz {
    pub fn open(path: &Path) -> Result<Npz, String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        let length = file.metadata().map_err(|error| error.to_string())?.len();
        let mut npz = Npz { file, length, members: BTreeMap::new() };

        // The end record is 22 bytes and a comment of at most 65535: look for it from the back.
        let tail = npz.read_at(length.saturating_sub(22 + 65535), length.min(22 + 65535))?;
        let end = tail.windows(4).rposition(|window| window == b"PK\x05\x06").ok_or("not a zip file")?;
        let entries = u16_at(&tail, end + 10)?;
        let directory = npz.read_at(u32_at(&tail, end + 16)?.into(), u32_at(&tail, end + 12)?.into())?;

        let mut entry = &directory[..];
        for _ in 0..entries {
            if !entry.starts_with(b"PK\x01\x02") {
                return Err("broken zip: no entry where the central directory should have one".into());
            }
            let member = Member {
                method: u16_at(entry, 10)?,
                size: u32_at(entry, 20)?.into(),
                local_header: u32_at(entry, 42)?.into(),
            };
            let (name, extra, comment) = (u16_at(entry, 28)?, u16_at(entry, 30)?, u16_at(entry, 32)?);
            npz.members.insert(String::from_utf8_lossy(slice(entry, 46, name.into())?).into_owned(), member);
            let entry_length = 46 + usize::from(name) + usize::from(extra) + usize::from(comment);
            entry = entry.get(entry_length..).ok_or("broken zip: the central directory is cut off")?;
        }
        Ok(npz)
    }

    pub fn array(&mut self, name: &str) -> Result<Array, String> {
        let member = self.members.get(&format!("{name}.npy")).copied();
        let member = member.ok_or_else(|| format!("{name}: no such array in the file"))?;
        self.read_array(member).map_err(|error| format!("{name}: {error}"))
    }

    fn read_array(&mut self, member: Member) -> Result<Array, String> {
        if member.method != 0 {
            return Err(format!("compressed (zip method {}); only stored members can be read", member.method));
        }
        // The size is the central directory's: numpy leaves it in the local header to a ZIP64 field. The lengths of
        // name and extra field are the local header's own, since that field is not in the directory.
        let local = self.read_at(member.local_header, 30)?;
        if !local.starts_with(b"PK\x03\x04") {
            return Err("broken zip: no member where the central directory says".into());
        }
        let skip = 30 + u64::from(u16_at(&local, 26)?) + u64::from(u16_at(&local, 28)?);
        let npy = self.read_at(member.local_header + skip, member.size)?;

        if !npy.starts_with(b"\x93NUMPY\x01\x00") {
            return Err("not an .npy of version 1.0".into());
        }
        let header_length = u16_at(&npy, 8)?.into();
        let header = String::from_utf8_lossy(slice(&npy, 10, header_length)?);
        if !header.contains("'descr': '<f4'") || !header.contains("'fortran_order': False") {
            return Err(format!("not little-endian float32 in C order: {}", header.trim()));
        }
        let shape = parse_shape(&header).ok_or_else(|| format!("no shape in {}", header.trim()))?;
        let data = &npy[10 + header_length..];
        if shape.iter().try_fold(4_usize, |product, &size| product.checked_mul(size)) != Some(data.len()) {
            return Err(format!("{} bytes of data, which is not the shape {shape:?}", data.len()));
        }
        let values = data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok(Array { shape, values })
    }

    /// The length is checked before anything is allocated: a broken file may claim gigabytes.
    fn read_at(&mut self, offset: u64, length: u64) -> Result<Vec<u8>, String> {
        if offset + length > self.length {
            return Err("broken zip: it points past the end of the file (or is ZIP64, which is not read)".into());
        }
        let mut bytes = vec![0; length as usize];
        self.file.seek(SeekFrom::Start(offset)).map_err(|error| error.to_string())?;
        self.file.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }
}

/// The numbers of `'shape': (64, 512), ` or `'shape': (512,), `.
fn parse_shape(header: &str) -> Option<Vec<usize>> {
    let (_, rest) = header.split_once("'shape': (")?;
    let (inside, _) = rest.split_once(')')?;
    inside.split(',').map(str::trim).filter(|size| !size.is_empty()).map(|size| size.parse().ok()).collect()
}

fn slice(bytes: &[u8], at: usize, length: usize) -> Result<&[u8], String> {
    bytes.get(at..at + length).ok_or_else(|| "broken file: a record is cut off".into())
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, String> {
    slice(bytes, at, 2).map(|b| u16::from_le_bytes([b[0], b[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, String> {
    slice(bytes, at, 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}
