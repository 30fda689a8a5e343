// The list to choose the model from.

import { request } from "./api.js";
import { $, h } from "./dom.js";
import { t } from "./words.js";

const MOST_NAMED = 12;
let byName = new Map();

/** Fills the list of models, and calls `onChange(classNames, hasSeveralLabels)` now and whenever the user chooses another model. */
export async function loadModels(onChange) {
  const answer = await (await request("models")).json();
  const select = $("model");
  const chosen = select.value;
  byName = new Map(answer.models.map((entry) => [entry.name, entry]));
  select.replaceChildren(
    h("option", { value: "" }, answer.default ? t("{model} (default)", { model: answer.default }) : t("none yet")),
    ...answer.models.map((entry) => {
      const newestFirst = [...entry.versions].reverse();
      return h("optgroup", { label: entry.name }, ...newestFirst.map((version) => option(entry, version)));
    }),
  );
  if ([...select.options].some(({ value }) => value === chosen)) select.value = chosen;
  const tell = () => {
    const entry = byName.get((select.value || answer.default || "").split("@")[0]);
    describe(entry);
    onChange(entry?.classes ?? [], hasSeveralLabels(entry));
  };
  select.onchange = tell;
  tell();
  return answer;
}

/** The chosen model as the API expects it; empty for the server's default model. */
export const chosenModel = () => $("model").value;

/** The description of a class of a model; `undefined` if it has none. */
export function describeClass(model, className) {
  const descriptions = byName.get(model)?.class_descriptions ?? {};
  return Object.hasOwn(descriptions, className) ? descriptions[className] : undefined; // a class may be called "constructor"
}

const hasSeveralLabels = (entry) => entry?.task === "multi-label";

function option(entry, version) {
  const aliases = Object.entries(entry.aliases)
    .filter(([, target]) => target === version)
    .map(([alias]) => alias);
  const isMeant = version === (entry.aliases.production ?? entry.versions.at(-1));
  const [figure, unit] = hasSeveralLabels(entry) ? [entry.test_map, t("% mean average precision")] : [entry.test_accuracy, t("% correct")];
  const accuracy = isMeant && figure !== null ? [`${(figure * 100).toFixed(1)} ${unit}`] : [];
  const notes = [...aliases, ...accuracy].join(", ");
  return h("option", { value: `${entry.name}@${version}` }, `${entry.name}@${version}${notes && ` (${notes})`}`);
}

function describe(entry) {
  if (!entry?.classes.length) return;
  const names = entry.classes.slice(0, MOST_NAMED).join(", ");
  const more = entry.classes.length - MOST_NAMED;
  const kind = hasSeveralLabels(entry) ? t("Labels") : t("Classes");
  $("known").textContent = `${kind}: ${names}${more > 0 ? t(" and {more} more", { more }) : ""}.`;
}
