// SPDX-License-Identifier: GPL-2.0
/*
 * Setting value hangs in state D until something is written to /sys/kernel/kmodd_test_param_hang/release; reading it does
 * so too where get_hangs is set. All that time the kernel holds the mutex of this module's parameters.
 */
#include <linux/completion.h>
#include <linux/kobject.h>
#include <linux/module.h>
#include <linux/sysfs.h>

static bool get_hangs;
module_param(get_hangs, bool, 0644);
MODULE_PARM_DESC(get_hangs, "reading value hangs as well");

static int bystander = 5;
module_param(bystander, int, 0644);
MODULE_PARM_DESC(bystander, "a parameter that does nothing");

static DECLARE_COMPLETION(released);

static int value;

static int value_set(const char *text, const struct kernel_param *parameter)
{
	int result = kstrtoint(text, 10, &value);

	if (!result)
		wait_for_completion(&released);
	return result;
}

static int value_get(char *buffer, const struct kernel_param *parameter)
{
	if (get_hangs)
		wait_for_completion(&released);
	return param_get_int(buffer, parameter);
}

static const struct kernel_param_ops value_ops = { .set = value_set, .get = value_get };
module_param_cb(value, &value_ops, &value, 0644);
__MODULE_PARM_TYPE(value, "int");
MODULE_PARM_DESC(value, "setting it hangs until it is released");

static ssize_t release_store(struct kobject *object, struct kobj_attribute *attribute,
			     const char *text, size_t size)
{
	complete_all(&released);
	return size;
}
static struct kobj_attribute release_attribute = __ATTR_WO(release);
static struct kobject *folder;

static int __init param_hang_init(void)
{
	int result;

	folder = kobject_create_and_add("kmodd_test_param_hang", kernel_kobj);
	if (!folder)
		return -ENOMEM;
	result = sysfs_create_file(folder, &release_attribute.attr);
	if (result)
		kobject_put(folder);
	return result;
}

static void __exit param_hang_exit(void)
{
	kobject_put(folder);
}

module_init(param_hang_init);
module_exit(param_hang_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Setting its parameter value hangs until it is released, and so does reading it where get_hangs is set");
