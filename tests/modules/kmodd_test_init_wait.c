// SPDX-License-Identifier: GPL-2.0
/* init() hangs in state D until something is written to /sys/kernel/kmodd_test_init_wait/release, then answers error. */
#include <linux/completion.h>
#include <linux/kobject.h>
#include <linux/module.h>
#include <linux/sysfs.h>

static int error;
module_param(error, int, 0444);
MODULE_PARM_DESC(error, "what init() answers in the end: 0, or a negative errno");

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
	folder = kobject_create_and_add("kmodd_test_init_wait", kernel_kobj);
	if (!folder)
		return -ENOMEM;
	return sysfs_create_file(folder, &release_attribute.attr);
}

static int __init init_wait_init(void)
{
	int result = make_folder();

	if (!result)
		wait_for_completion(&released);
	kobject_put(folder);
	return result ? result : error;
}

static void __exit init_wait_exit(void)
{
}

module_init(init_wait_init);
module_exit(init_wait_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("init() hangs until it is released");
