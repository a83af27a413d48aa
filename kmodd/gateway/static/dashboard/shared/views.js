// SPDX-License-Identifier: LGPL-2.1-or-later
// Which view is shown, by the page's address, and when it is refreshed.

import {refresh as refreshChange} from "./change.js";
import {make} from "./dom.js";
import {panel} from "./failure.js";
import {told as jobTold} from "./jobs.js";
import * as module from "./module.js";
import * as modules from "./modules.js";

// Events come in bunches: a load is an event for each module, and one for the job.
// And the journal needs a moment until it has the record.
const TOGETHER = 250;
// The kernel sends no events for reference counts and their holders: refresh them at this interval while the page is visible.
const UNTOLD = 15000;

const main = document.getElementById("main");
let view = null;
let page = null;

/** The current view: it refreshes on request, never twice at a time. */
class Shown {
  constructor(source, argument) {
    this.source = source;
    const heading = make("h1", {tabindex: "-1"});
    const body = make("div", {class: "view"});
    this.trouble = make("div");
    this.waiting = make("p", {class: "nothing", role: "status"}, "Loading …");
    main.replaceChildren(heading, this.trouble, this.waiting, body);
    this.body = body;
    this.opened = source.open(body, argument, () => this.look());
    body.hidden = true;
    heading.textContent = this.opened.title;
    document.title = `${this.opened.title} – kmodd`;
    this.heading = heading;
    this.running = false;
    this.again = false;
    this.look();
  }

  concerns(kinds) {
    return kinds.some((kind) => this.source.concerns.some((one) => kind.startsWith(one)));
  }

  /** Refresh; `untold` if no event caused it. */
  async look(untold = false) {
    if (this.running) {
      this.again ||= !untold;
      return;
    }
    this.running = true;
    let quiet = untold;
    do {
      this.again = false;
      try {
        await this.opened.refresh(quiet);
        this.trouble.replaceChildren();
        this.trouble.told = "";
        this.body.hidden = false;
      } catch (problem) {
        if (!problem.facts) console.error(problem);
        // Shown once, not with every refresh: screen readers read it aloud.
        if (this.trouble.told !== problem.message) this.trouble.replaceChildren(panel(problem));
        this.trouble.told = problem.message;
      }
      this.waiting.remove();
      quiet = false;
    } while (this.again && view === this);
    this.running = false;
  }

  close() {
    this.opened.close?.();
  }
}

function route() {
  const [name, argument = ""] = location.hash
    .replace(/^#\/?/, "")
    .split("/")
    .map((part) => {
      try {
        return decodeURIComponent(part);
      } catch {
        return part;
      }
    });
  const isView = Object.hasOwn(page.views, name);
  const source = name === "modules" && argument ? module : isView ? page.views[name] : modules;
  const first = view === null;
  view?.close();
  document.getElementById("notice").textContent = "";
  view = new Shown(source, argument);
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.hash === `#/${isView ? name : "modules"}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  keepInSight();
  if (!first) {
    scrollTo(0, 0);
    view.heading.focus({preventScroll: true});
  }
}

/** On a phone the names of the views are wider than the page: move them so that the one that is shown can be read. */
export function keepInSight() {
  const link = document.querySelector("nav [aria-current]");
  const [box, room] = [link, link.closest("ul")].map((one) => one.getBoundingClientRect());
  // Whole pixels: a fraction is cut off.
  link.closest("ul").scrollLeft += Math.ceil(Math.max(box.right - room.right, 0)) + Math.floor(Math.min(box.left - room.left, 0));
}

let kinds = [];
let timer = null;

/** Refresh after an event, once for all events that arrive now. */
export function told(kind, data) {
  jobTold(kind, data);
  if (kind === "hello" && data.complete) return;
  kinds.push(kind);
  timer ??= setTimeout(() => {
    const seen = kinds;
    kinds = [];
    timer = null;
    const missed = ["hello", "daemon", "missed"].some((one) => seen.includes(one));
    if (missed || seen.includes("changed") || view.concerns(seen)) view.look();
    if (missed || seen.some((one) => /^(health|module-|manager-|configuration-|store-)/.test(one))) page.summary();
    refreshChange();
  }, TOGETHER);
}

/** Refresh everything: events may have been missed. */
export function lookAgain() {
  view.look();
  page.summary();
}

const look = () => {
  if (!page.visibility.hidden) {
    view.look(true);
    refreshChange();
  }
};

function searchByKey(event) {
  if (event.key !== "/" || event.target.matches("input:not([type=radio], [type=checkbox])")) return;
  const search = document.querySelector("main input[type=search]");
  if (!search || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  search.focus();
}

/**
 * Show the view that the address names; `views` are all there are, `summary` refreshes what the page itself shows, `visibility` has
 * `hidden` and the event "visibilitychange", as a document has.
 */
export function start({views, summary, visibility = document}) {
  page = {views, summary, visibility};
  setInterval(look, UNTOLD);
  visibility.addEventListener("visibilitychange", look);
  // One's own changes are seen although there may be no event for them, as for a parameter.
  document.addEventListener("changed", () => told("changed", {}));
  document.addEventListener("keydown", searchByKey);
  addEventListener("hashchange", route);
  addEventListener("resize", keepInSight);
  route();
  summary();
}
