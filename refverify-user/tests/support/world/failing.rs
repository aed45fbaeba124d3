//! What goes wrong in a file system's life: transactions that are aborted, crashes, and older
//! contents that come back.

use std::collections::BTreeMap;

use refverify_user::feed::{Mount, ToVerifier};

use super::{Extent, FS, Image, World};

/// What is on disk: enough to mount it again.
#[derive(Clone)]
pub(crate) struct OnDisk {
    image: Image,
    extents: BTreeMap<u64, Extent>,
    /// The superblock's generation.
    pub(crate) generation: u64,
}

impl World {
    /// A superblock was written.
    pub(super) fn is_on_disk(&mut self, generation: u64, extents: BTreeMap<u64, Extent>) {
        self.on_disk = Some(OnDisk { image: self.image.clone(), extents, generation });
    }

    /// What is on disk now.
    pub(crate) fn disk(&self) -> OnDisk {
        self.on_disk.clone().expect("the world begins with a commit")
    }

    /// The running transaction is aborted, and its number returned. The one before it, which is
    /// being committed, dies with it, or is written all the same.
    pub(crate) fn abort(&mut self, both_die: bool) -> u64 {
        if self.commit.is_none() {
            self.begin_commit();
        }
        // Some find nothing to do.
        for _ in 0..20 {
            self.change();
        }
        let transid = self.model.transid;
        self.push(ToVerifier::Abort { fs: FS, transid, errno: -5 });
        if !both_die {
            while self.commit.is_some() {
                self.commit_some();
            }
        }
        self.commit = None;
        transid
    }

    /// The file system goes without a commit, and everything about it is drained.
    pub(crate) fn crash(&mut self) {
        self.commit = None;
        self.unmount();
        self.answer_all();
    }

    /// What is on disk once another machine, on which nobody watches, has done some work and made a
    /// few commits. Here it is not mounted.
    pub(crate) fn worked_on_elsewhere(
        &mut self,
        disk: OnDisk,
        work: impl FnOnce(&mut Self),
    ) -> OnDisk {
        self.put_back(disk);
        let armed = std::mem::replace(&mut self.armed, false);
        work(self);
        for _ in 0..8 {
            self.commit_now();
        }
        self.armed = armed;
        self.disk()
    }

    fn put_back(&mut self, disk: OnDisk) {
        let OnDisk { image, extents, generation } = disk.clone();
        self.image = image;
        self.model.after_crash(extents, generation);
        self.on_disk = Some(disk);
        self.drops_writes = false;
    }

    /// Mounts what was on disk once, with the hooks armed.
    pub(crate) fn mount(&mut self, disk: OnDisk) {
        self.put_back(disk);
        let device = "/dev/simulated".into();
        self.push(ToVerifier::Mount(Mount { fs: FS, device, first_usable_generation: 0 }));
    }
}
