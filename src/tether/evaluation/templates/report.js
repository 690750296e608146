"use strict";

// Plots are drawn as they come near the screen, and all that are open before the page is printed.

function draw(figure) {
  const plot = figure.querySelector(".plot");
  if (plot.dataset.drawn) return;
  plot.dataset.drawn = "yes";
  const spec = JSON.parse(figure.querySelector("script").textContent);
  Plotly.newPlot(plot, spec.data, spec.layout, {displayModeBar: false, responsive: true});
  const fitPaper = () => {  // on paper a plot is scaled, not drawn anew
    for (const svg of plot.querySelectorAll(".main-svg")) {
      svg.setAttribute("viewBox", `0 0 ${svg.getAttribute("width")} ${svg.getAttribute("height")}`);
    }
  };
  plot.on("plotly_afterplot", fitPaper);
  fitPaper();
}

const figures = document.querySelectorAll("figure.plotted");
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) draw(entry.target);
  }
}, {rootMargin: "400px"});
addEventListener("DOMContentLoaded", () => {  // plotly stands below
  for (const figure of figures) near.observe(figure);
});

function drawAll() {
  for (const figure of figures) {
    if (!figure.closest("details:not([open])")) draw(figure);
  }
}
addEventListener("beforeprint", drawAll);
matchMedia("print").addEventListener("change", (print) => { if (print.matches) drawAll(); });

// The samples of an evaluation: filtered and sorted, twenty prompts at a time. Texts of models
// become text nodes only.

const PER_PAGE = 20;
const PER_POLICY = 3;  // samples of a policy shown before "more"

function element(tag, name, ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...children);
  return made;
}

function options(select, names, chosen) {
  select.replaceChildren(...names.map(([value, text]) => new Option(text, value)));
  if (chosen !== undefined) select.value = chosen;
}

function grouped(data) {
  const prompts = data.prompts.map(([category, turns]) => ({category, turns, answers: new Map()}));
  for (const [prompt, policy, text, finished, ...scores] of data.samples) {
    const answers = prompts[prompt].answers;
    if (!answers.has(policy)) answers.set(policy, []);
    answers.get(policy).push({text, finished, scores});
  }
  return prompts;
}

function mean(answers, scorer) {
  return answers.reduce((sum, answer) => sum + answer.scores[scorer], 0) / answers.length;
}

/** By how much a policy's mean score of a prompt exceeds the baseline's; NaN where one is missing. */
function gain(prompt, policy, baseline, scorer) {
  const [ours, theirs] = [prompt.answers.get(policy), prompt.answers.get(baseline)];
  return ours && theirs ? mean(ours, scorer) - mean(theirs, scorer) : NaN;
}

function signed(number) {
  const text = Math.abs(number).toFixed(2);
  return (number < 0 && Number(text) !== 0 ? "−" : "+") + text;
}

function answerOf(answer, data) {
  const scores = data.scorers.map((name, i) => `${name} ${answer.scores[i].toFixed(2)}`).join(", ");
  const cut = answer.finished ? "" : " · cut at the length limit";
  return [element("p", "", answer.text), element("p", "note", scores + cut)];
}

function policyOf(answers, policy, data) {
  const shown = element("div", "", element("h4", "", data.policies[policy]));
  for (const answer of answers.slice(0, PER_POLICY)) shown.append(...answerOf(answer, data));
  if (answers.length > PER_POLICY) {
    const rest = answers.slice(PER_POLICY);
    const more = element("details", "", element("summary", "", `${rest.length} more`));
    for (const answer of rest) more.append(...answerOf(answer, data));
    shown.append(more);
  }
  return shown;
}

function articleOf(prompt, shown, difference, data) {
  const article = element("article", "");
  const tags = [prompt.category, difference].filter(Boolean);
  for (const tag of tags) article.append(element("span", "tag", tag));
  for (const [role, text] of prompt.turns) {
    const heading = element("h3", "");
    if (role) heading.append(element("span", "role", `${role}: `));
    heading.append(text);
    article.append(heading);
  }
  const answers = element("div", "answers");
  for (const policy of shown) {
    if (prompt.answers.has(policy)) {
      answers.append(policyOf(prompt.answers.get(policy), policy, data));
    }
  }
  article.append(answers);
  return article;
}

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

async function browse(section) {
  const data = await unpacked(section.querySelector(":scope > script").textContent);
  const prompts = grouped(data);
  const form = section.querySelector(".controls");
  const pages = section.querySelector(".pages");
  const list = section.querySelector(".list");
  const status = section.querySelector("[role=status]");
  const [previous, next] = pages.querySelectorAll("button");
  const control = form.elements;
  const numbers = data.policies.map((name, i) => [i, name]);
  const rivals = numbers.filter(([i]) => i !== data.baseline);
  const categories = [...new Set(prompts.map((prompt) => prompt.category))];
  let page = 0;

  options(control.policy, rivals.length ? rivals : numbers, data.tuned);
  options(control.scorer, data.scorers.map((name, i) => [i, name]), 0);
  options(control.category, [["all", "all"], ...categories.map((name, i) => [i, name || "none"])]);
  control.category.closest("label").hidden = categories.length < 2;
  control.scorer.closest("label").hidden = data.scorers.length < 2;
  control.others.checked = data.policies.length < 6;
  control.others.closest("label").hidden = data.policies.length < 3;

  function contains(prompt, shown, wanted) {
    return prompt.turns.some(([, text]) => text.toLowerCase().includes(wanted)) ||
      shown.some((policy) => (prompt.answers.get(policy) || []).some(
        (answer) => answer.text.toLowerCase().includes(wanted)));
  }

  function show() {
    const policy = Number(control.policy.value);
    const scorer = Number(control.scorer.value);
    const order = Number(control.order.value);
    const wanted = control.text.value.toLowerCase();
    const category = control.category.value;
    const all = [...data.policies.keys()];
    const shown = control.others.checked ? all : [...new Set([data.baseline, policy])];
    const found = prompts
      .filter((prompt) => category === "all" || prompt.category === categories[Number(category)])
      .filter((prompt) => !wanted || contains(prompt, shown, wanted))
      .map((prompt) => ({prompt, gain: gain(prompt, policy, data.baseline, scorer)}));
    if (order) {
      const key = (each) => (Number.isNaN(each.gain) ? Infinity : order * each.gain);
      found.sort((one, other) => key(one) - key(other) || 0);
    }
    const count = Math.max(1, Math.ceil(found.length / PER_PAGE));
    page = Math.min(Math.max(page, 0), count - 1);
    const names = `${data.policies[policy]} − ${data.policies[data.baseline]}`;
    list.replaceChildren(...found.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map((each) => {
      const known = policy !== data.baseline && !Number.isNaN(each.gain);
      const told = known ? `${names}: ${data.scorers[scorer]} ${signed(each.gain)}` : "";
      return articleOf(each.prompt, shown, told, data);
    }));
    status.textContent = `${found.length.toLocaleString("en")} of ` +
      `${prompts.length.toLocaleString("en")} prompts, ` +
      `${data.samples.length.toLocaleString("en")} samples in all.`;
    pages.querySelector("span").textContent = `Page ${page + 1} of ${count}`;
    previous.disabled = page === 0;
    next.disabled = page === count - 1;
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { page = 0; show(); });
  pages.addEventListener("click", (event) => {
    if (!event.target.value) return;
    page += Number(event.target.value);
    show();
    list.focus({preventScroll: true});
    form.scrollIntoView();
  });
  list.tabIndex = -1;
  form.hidden = pages.hidden = false;
  show();
}

for (const section of document.querySelectorAll("section.samples")) browse(section);
