// Five steps in which a newcomer makes a policy hack its reward, and mends it. A step asks for a
// state of the page and knows when it is reached, which some β does with the faults `with`,
// in units of the proxy.

"use strict";

const clean = (setting) => setting.length === 0 && setting.flattery === 0 && setting.noise === 0 && setting.tail === 0;

const TOUR = [
  {
    title: "Start at the reference",
    text: "β is the price of a nat: how much reward one nat of distance from the reference costs. " +
      "Drag β to the far right, with every fault of the reward at 0. Distance is dear now, so the " +
      "policy stays where it was: all dots have one size, and KL is almost 0.",
    met: (view) => clean(view.setting) && view.kl < 0.05,
    with: { length: 0, flattery: 0, noise: 0, tail: 0 },
  },
  {
    title: "Let it learn",
    text: "Lower β slowly. Dots on the right, which the proxy likes, grow; the arrow shows where the " +
      "policy's mean goes. Stop when gold is clearly up. Near the reference a decent reward model " +
      "points the right way.",
    met: (view) => clean(view.setting) && view.goldGain > 0.3 * view.goldSpread && !view.unsure,
    with: { length: 0, flattery: 0, noise: 0, tail: 0 },
  },
  {
    title: "Break the reward",
    text: "People tend to prefer longer answers, and reward models learn it. Give the proxy a length " +
      "bias of 0.1 a token or more. The long answers move to the right, although their gold score, " +
      "the height, is as it was.",
    met: (view) => view.setting.length >= 0.099 * view.scale,
    with: { length: 0.1 },
  },
  {
    title: "Push",
    text: "Lower β until the proxy is up and gold is below the reference's. The policy does just what " +
      "it is paid for: this is reward hacking. Generate a few answers and read them.",
    met: (view) => view.setting.length >= 0.099 * view.scale && view.proxyGain > 0 && view.goldGain < 0,
    with: { length: 0.1 },
  },
  {
    title: "Cure it",
    text: "Raise β: the damage goes, and with it everything that was learned. A tether limits what a bad " +
      "reward can do; it cannot make the reward good. So take the bias out as well, as balanced " +
      "comparisons, a length penalty or an ensemble of reward models would, until gold is clearly up.",
    met: (view) => view.goldGain > 0.3 * view.goldSpread && view.proxyGain > 0 && !view.unsure,
    with: { length: 0 },
  },
];
