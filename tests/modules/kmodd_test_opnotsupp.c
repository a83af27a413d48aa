// SPDX-License-Identifier: GPL-2.0
/* init() says that the processor lacks a feature and answers EOPNOTSUPP. */
#include <linux/module.h>

static int __init opnotsupp_init(void)
{
	pr_info("kmodd_test_opnotsupp: this processor has no such feature\n");
	return -EOPNOTSUPP;
}

static void __exit opnotsupp_exit(void)
{
}

module_init(opnotsupp_init);
module_exit(opnotsupp_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("init() says that the processor lacks a feature and answers EOPNOTSUPP");
