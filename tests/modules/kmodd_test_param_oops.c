// SPDX-License-Identifier: GPL-2.0
/*
 * Setting value writes through a null pointer, and so does reading it where get_oopses is set: the kernel kills the
 * process that does it, and the mutex of this module's parameters stays locked for ever.
 */
#include <linux/module.h>

static bool get_oopses;
module_param(get_oopses, bool, 0644);
MODULE_PARM_DESC(get_oopses, "reading value oopses as well");

static int *volatile nowhere;
static int value;

static int value_set(const char *text, const struct kernel_param *parameter)
{
	*nowhere = 1;
	return 0;
}

static int value_get(char *buffer, const struct kernel_param *parameter)
{
	if (get_oopses)
		*nowhere = 1;
	return param_get_int(buffer, parameter);
}

static const struct kernel_param_ops value_ops = { .set = value_set, .get = value_get };
module_param_cb(value, &value_ops, &value, 0644);
__MODULE_PARM_TYPE(value, "int");
MODULE_PARM_DESC(value, "setting it oopses");

static int __init param_oops_init(void)
{
	return 0;
}

static void __exit param_oops_exit(void)
{
}

module_init(param_oops_init);
module_exit(param_oops_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Setting its parameter value writes through a null pointer, and so does reading it where get_oopses is set");
