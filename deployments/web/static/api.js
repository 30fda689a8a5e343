// Requests to the server, and their errors in plain words.

import { $ } from "./dom.js";
import { t } from "./words.js";

const MOST_TRIES = 5;
const LONGEST_WAIT_S = 30;
const GIVE_UP_MS = 120_000;
const KEY = "cifar_ray.key";

const WORDS = {
  400: t("The server did not understand the request."),
  401: t("This server requires an API key."),
  403: t("This is not allowed."),
  404: t("The server does not have this."),
  405: t("This server cannot do this."),
  408: t("Sending the picture took too long."),
  413: t("This picture is too large."),
  415: t("This file cannot be read as a picture."),
  422: t("This file cannot be read as a picture."),
  429: t("Too many requests for this API key."),
  503: t("The server is too busy, or has no model yet."),
  504: t("The model took too long to answer."),
};

/** A failed request: `message` in plain words, `detail` from the server. */
export class ApiError extends Error {
  constructor(message, detail = "", status = 0) {
    super(message);
    this.detail = detail;
    this.status = status;
  }
}

/**
 * Sends a request; retries while the server is busy, and asks the user for an API key if the server requires one.
 *
 * `onSend()` is called before each attempt and `onWait(seconds)` before each wait; `signal` cancels.
 * Throws an ApiError, or an AbortError after `signal`.
 */
export async function request(path, { method = "GET", body, headers = {}, signal, onSend = () => {}, onWait = () => {} } = {}) {
  for (let tries = 1; ; tries++) {
    const key = sessionStorage.getItem(KEY);
    onSend();
    const response = await send(path, { method, body, headers: key ? { ...headers, Authorization: `Bearer ${key}` } : headers }, signal);
    if (response.ok) return response;
    if (response.status === 401 && (await newKey(key))) continue;
    if (![429, 503].includes(response.status) || tries === MOST_TRIES) throw await failure(response);
    const seconds = Math.min(Number(response.headers.get("Retry-After")) || 2, LONGEST_WAIT_S);
    onWait(seconds);
    await sleep(seconds * 1000 * (1 + Math.random() / 4), signal); // jitter, so that requests do not retry together
  }
}

async function send(path, init, signal) {
  const tooLong = AbortSignal.timeout(GIVE_UP_MS);
  try {
    return await fetch(path, { ...init, signal: signal ? AbortSignal.any([signal, tooLong]) : tooLong });
  } catch (cause) {
    if (signal?.aborted) throw cause;
    if (tooLong.aborted) throw new ApiError(t("The server took too long to answer."));
    throw new ApiError(t("The server cannot be reached."), t("Is it running, and is this machine connected?"));
  }
}

async function failure(response) {
  const isProblem = response.headers.get("Content-Type")?.includes("json");
  const text = await response.text().catch(() => "");
  let detail = text.slice(0, 300);
  if (isProblem) {
    try {
      detail = JSON.parse(text).detail ?? "";
    } catch {
      // the JSON is cut off: show the text received so far
    }
  } else if (text.trimStart().startsWith("<")) detail = ""; // a proxy's own page
  return new ApiError(WORDS[response.status] ?? t("Error in the server ({status}).", { status: response.status }), detail, response.status);
}

function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

$("forget-key").hidden = sessionStorage.getItem(KEY) === null;
$("forget-key").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  $("forget-key").hidden = true;
});

let asking = null;
let hasDeclined = false;

/** Call this after an action of the user, who may then be asked for a key again. */
export function mayAskForKey() {
  hasDeclined = false;
}

/** Asks for a key once, however many requests need it; resolves to false if the user enters none. */
function newKey(refused) {
  const present = sessionStorage.getItem(KEY);
  if (present !== null && present !== refused) return Promise.resolve(true); // another request got one meanwhile
  if (hasDeclined) return Promise.resolve(false);
  asking ??= ask(refused !== null).finally(() => (asking = null));
  return asking;
}

function ask(wasRefused) {
  const [dialog, form, input] = [$("key-dialog"), $("key-form"), $("key")];
  sessionStorage.removeItem(KEY);
  $("key-why").textContent = wasRefused
    ? t("The server refused this key. Is it complete and still valid?")
    : t("This server requires a key. The key stays in this tab until you close it.");
  input.value = "";
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, input.value.trim());
      $("forget-key").hidden = false;
      dialog.close();
    };
    $("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      hasDeclined = sessionStorage.getItem(KEY) === null;
      resolve(!hasDeclined);
    };
    dialog.showModal();
  });
}
