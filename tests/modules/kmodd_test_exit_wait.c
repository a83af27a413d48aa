// SPDX-License-Identifier: GPL-2.0
/* exit() hangs in state D until something is written to /sys/kernel/kmodd_test_exit_wait/release. */
#include <linux/completion.h>
#include <linux/kobject.h>
#include <linux/module.h>
#include <linux/sysfs.h>

static DECLARE_COMPLETION(released);

static ssize_t release_store(struct kobject *object, struct kobj_attribute *attribute,
			     const char *text, size_t size)
{
	complete_all(&released);
	return size;
}
static struct kobj_attribute release_attribute = __ATTR_WO(release);
static struct kobject *folder;

static int make_folder(void)
{
	folder = kobject_create_and_add("kmodd_test_exit_wait", kernel_kobj);
	if (!folder)
		return -ENOMEM;
	return sysfs_create_file(folder, &release_attribute.attr);
}

static int __init exit_wait_init(void)
{
	return make_folder();
}

static void __exit exit_wait_exit(void)
{
	wait_for_completion(&released);
	kobject_put(folder);
}

module_init(exit_wait_init);
module_exit(exit_wait_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("exit() hangs until it is released");
