// SPDX-License-Identifier: LGPL-2.1-or-later
// Operations in progress, by any caller, in one line at the top.

// A load is over in milliseconds; only what takes longer is worth a line.
const LATE = 700;
const running = new Map();

function write() {
  const now = Date.now();
  const late = [...running.values()].filter((job) => now - job.seen >= LATE);
  const line = document.getElementById("jobs");
  const text = late.map((job) => `${job.action} ${job.module}: ${job.state || "running"}`).join(" · ");
  if (line.textContent !== text) line.textContent = text;
  line.classList.toggle(
    "stuck",
    late.some((job) => job.state === "stuck"),
  );
}

/** Handle an event. */
export function told(kind, data) {
  if (kind === "job-started") {
    running.set(data.job, {...data, seen: Date.now()});
    setTimeout(write, LATE);
  } else if (kind === "job-changed" && running.has(data.job)) {
    Object.assign(running.get(data.job), data.changed);
  } else if (kind === "job-finished") {
    running.delete(data.job);
  } else if (kind === "hello" || kind === "daemon" || kind === "missed") {
    running.clear(); // their results are not known
  } else {
    return;
  }
  write();
}
