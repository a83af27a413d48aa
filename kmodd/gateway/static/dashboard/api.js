// SPDX-License-Identifier: LGPL-2.1-or-later
// The HTTP API. A failure is thrown as the problem document that the gateway answered.

import {current, demand} from "./token.js";

export const EXPIRED = "The token is no longer valid: it has expired or was revoked.";
export const MISSING = "A token is required.";

/** A failure, with its problem document (RFC 9457). */
export class Problem extends Error {
  constructor(facts) {
    super(facts.detail);
    this.facts = facts;
    /** The name of kmodd's error, empty for errors of HTTP. */
    this.name = (facts.type || "").startsWith("urn:kmodd:error:") ? facts.type.split(":").pop() : "";
  }
}

const away = (detail) => new Problem({type: "about:blank", title: "the gateway does not respond", status: 0, detail});

/** One request with the token; waits for another token if this one is invalid. Returns the raw response. */
export async function fetchWith(path, options = {}) {
  for (let tried = ""; ;) {
    // Another request may have obtained a new one in the meantime.
    const token = current() && current() !== tried ? current() : await demand(tried ? EXPIRED : MISSING);
    tried = token;
    let answer;
    try {
      answer = await fetch(path, {
        ...options,
        cache: "no-store",
        headers: {...options.headers, Authorization: `Bearer ${token}`},
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw away("The connection to the gateway failed; the result of the request is unknown.");
    }
    if (answer.status !== 401) return answer;
  }
}

async function outcome(answer) {
  if (answer.ok) return answer.json();
  let facts;
  try {
    facts = await answer.json();
  } catch {
    facts = {
      type: "about:blank",
      title: answer.statusText,
      status: answer.status,
      detail: `The gateway answered ${answer.status}.`,
    };
  }
  throw new Problem(facts);
}

/** Send a request, with an optional JSON body; returns the response as an object, or throws a Problem. */
export async function ask(method, path, body) {
  const options = {method};
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = {"Content-Type": "application/json"};
  }
  return outcome(await fetchWith(path, options));
}

/** Send a file as it is. */
export async function upload(path, file) {
  return outcome(
    await fetchWith(path, {method: "POST", body: file, headers: {"Content-Type": "application/octet-stream"}}),
  );
}

/** The path of a module or of a resource below it. */
export const ofModule = (name, rest = "") => `/v1/modules/${encodeURIComponent(name)}${rest}`;
