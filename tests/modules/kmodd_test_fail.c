// SPDX-License-Identifier: GPL-2.0
/* init() says why in the kernel log and answers the errno of the parameter error. */
#include <linux/module.h>

static int error = -EIO;
module_param(error, int, 0444);
MODULE_PARM_DESC(error, "what init() answers: 0, or a negative errno");

int kmodd_test_fail_value(void)
{
	return 3;
}
EXPORT_SYMBOL_GPL(kmodd_test_fail_value);

static int __init fail_init(void)
{
	pr_err("kmodd_test_fail: the flux capacitor is not charged\n");
	return error;
}

static void __exit fail_exit(void)
{
}

module_init(fail_init);
module_exit(fail_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("init() says why in the kernel log and answers the errno of the parameter error");
