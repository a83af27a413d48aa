// SPDX-License-Identifier: GPL-2.0
/* A character device, /dev/kmodd_test_chardev, that a process can hold open. */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.llseek = noop_llseek,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "kmodd_test_chardev",
	.fops = &operations,
};

static int __init chardev_init(void)
{
	return misc_register(&device);
}

static void __exit chardev_exit(void)
{
	misc_deregister(&device);
}

module_init(chardev_init);
module_exit(chardev_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A character device, /dev/kmodd_test_chardev, that a process can hold open");
