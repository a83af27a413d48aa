// SPDX-License-Identifier: LGPL-2.1-or-later
// Server-Sent Events over fetch: EventSource cannot send the Authorization header, and a token does not belong in a URL.

import {fetchWith} from "./api.js";

const FIRST_PAUSE = 1000;
const LONGEST_PAUSE = 30000;
// The gateway sends something every 15 seconds, if only a comment. A connection that is silent for longer is dead.
const SILENCE = 40000;

/** Parses a stream of events; `next` gets (kind, data) of each, `id` is that of the last. */
class Parser {
  constructor(next) {
    this.next = next;
    this.id = "";
    this.rest = "";
  }

  feed(text) {
    const blocks = (this.rest + text).split("\n\n");
    this.rest = blocks.pop();
    for (const block of blocks) this.block(block);
  }

  block(text) {
    let kind = "";
    let data = "";
    for (const line of text.split("\n")) {
      const colon = line.indexOf(":");
      if (colon < 1) continue; // a comment
      const value = line.slice(colon + 1).replace(/^ /, "");
      if (line.startsWith("id")) this.id = value;
      else if (line.startsWith("event")) kind = value;
      else if (line.startsWith("data")) data += value;
    }
    if (kind) this.next(kind, JSON.parse(data));
  }
}

/** Follow the events forever. `told` gets (kind, data); `state` gets "connecting", "live" or "reconnecting". */
export async function follow(told, state) {
  let pause = FIRST_PAUSE;
  let last = "";
  state("connecting");
  for (;;) {
    const stop = new AbortController();
    const parser = new Parser(told);
    parser.id = last;
    let watch;
    const alive = () => {
      clearTimeout(watch);
      watch = setTimeout(() => stop.abort(), SILENCE);
    };
    try {
      alive();
      const answer = await fetchWith("/v1/events", {signal: stop.signal, headers: last ? {"Last-Event-ID": last} : {}});
      if (answer.ok) {
        state("live");
        const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
        for (let part = await reader.read(); !part.done; part = await reader.read()) {
          alive();
          pause = FIRST_PAUSE;
          parser.feed(part.value);
        }
      }
    } catch {
      // Cut off, silent or refused: in every case retry later.
    } finally {
      clearTimeout(watch);
      stop.abort();
      last = parser.id;
    }
    state("reconnecting");
    await sooner(pause * (0.75 + Math.random() / 2)); // so that not all pages reconnect to a restarted gateway at the same time
    pause = Math.min(pause * 2, LONGEST_PAUSE);
  }
}

/** Wait this many milliseconds, or less when the network or the page becomes active again. */
function sooner(milliseconds) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      removeEventListener("online", done);
      document.removeEventListener("visibilitychange", seen);
      resolve();
    };
    const seen = () => {
      if (!document.hidden) done();
    };
    const timer = setTimeout(done, milliseconds);
    addEventListener("online", done);
    document.addEventListener("visibilitychange", seen);
  });
}
