// SPDX-License-Identifier: GPL-2.0
/* A RAM disk of 4 MiB, /dev/kmodd_test_blk0, to make a file system on and mount. */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/err.h>
#include <linux/module.h>
#include <linux/version.h>
#include <linux/vmalloc.h>

#define SIZE (4U << 20)

static int major;
static struct gendisk *disk;
static u8 *memory;

static void submit(struct bio *bio)
{
	loff_t position = (loff_t)bio->bi_iter.bi_sector << SECTOR_SHIFT;
	struct bvec_iter iterator;
	struct bio_vec piece;

	bio_for_each_segment(piece, bio, iterator) {
		if (position + piece.bv_len > SIZE) {
			bio_io_error(bio);
			return;
		}
		if (bio_data_dir(bio) == WRITE)
			memcpy_from_bvec(memory + position, &piece);
		else
			memcpy_to_bvec(&piece, memory + position);
		position += piece.bv_len;
	}
	bio_endio(bio);
}

static const struct block_device_operations operations = {
	.owner = THIS_MODULE,
	.submit_bio = submit,
};

static int __init blockdev_init(void)
{
	int result = -ENOMEM;

	memory = vzalloc(SIZE);
	if (!memory)
		return -ENOMEM;
	major = register_blkdev(0, "kmodd_test_blockdev");
	if (major < 0) {
		result = major;
		goto free_memory;
	}
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 9, 0)
	disk = blk_alloc_disk(NULL, NUMA_NO_NODE);
#else
	disk = blk_alloc_disk(NUMA_NO_NODE);
#endif
	if (IS_ERR_OR_NULL(disk))
		goto unregister;
	disk->major = major;
	disk->first_minor = 0;
	disk->minors = 1;
	disk->flags |= GENHD_FL_NO_PART;
	disk->fops = &operations;
	strscpy(disk->disk_name, "kmodd_test_blk0", sizeof(disk->disk_name));
	set_capacity(disk, SIZE >> SECTOR_SHIFT);
	result = add_disk(disk);
	if (!result)
		return 0;
	put_disk(disk);
unregister:
	unregister_blkdev(major, "kmodd_test_blockdev");
free_memory:
	vfree(memory);
	return result;
}

static void __exit blockdev_exit(void)
{
	del_gendisk(disk);
	put_disk(disk);
	unregister_blkdev(major, "kmodd_test_blockdev");
	vfree(memory);
}

module_init(blockdev_init);
module_exit(blockdev_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A RAM disk of 4 MiB, /dev/kmodd_test_blk0, to make a file system on and mount");
