// SPDX-License-Identifier: GPL-2.0
/* init() takes ms milliseconds, exit() takes exit_ms. */
#include <linux/delay.h>
#include <linux/module.h>

static uint ms = 1000;
module_param(ms, uint, 0444);
MODULE_PARM_DESC(ms, "milliseconds init() takes");
static uint exit_ms;
module_param(exit_ms, uint, 0644);
MODULE_PARM_DESC(exit_ms, "milliseconds exit() takes");

static int __init slow_init(void)
{
	msleep(ms);
	return 0;
}

static void __exit slow_exit(void)
{
	msleep(exit_ms);
}

module_init(slow_init);
module_exit(slow_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("init() takes ms milliseconds, exit() takes exit_ms");
