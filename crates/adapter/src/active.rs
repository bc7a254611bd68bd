//! Adapters of a batch, resolved once and used by each layer.

use crate::selection::{BASE, Selection};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_lora_kernels::{overwrite_float, records};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

/// Adapters that a batch runs with: a [`Selection`] checked by a model
/// ([`activate`](crate::AdaptableExt::activate)) and passed along with the batch, so that requests with
/// different adapters can share one `&model`. Its tensors are copied to the device once.
///
/// ```
/// # use burn::tensor::{Device, Tensor};
/// # use burn_lora_adapter::{*, doc};
/// # let device = Device::default();
/// # let model = doc::model();
/// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
/// let model = model.with_adapter(&lora)?;
///
/// let x = Tensor::<2>::ones([2, 16], &device);
/// let (on, off) = (model.activate(Selection::adapters(["default"]))?, model.activate(Selection::base())?);
/// let mixed = model.activate(Selection::rows(["default", BASE]))?;
/// let run = |active| model.linear.forward_with(x.clone(), Some(active));
/// let y = run(&mixed);
/// y.clone().narrow(0, 0, 1).into_data().assert_approx_eq::<f32>(
///     &run(&on).narrow(0, 0, 1).into_data(), burn::tensor::Tolerance::default());
/// y.narrow(0, 1, 1).into_data().assert_eq(&run(&off).narrow(0, 1, 1).into_data(), true);
/// # Ok::<_, AdapterError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ActiveAdapters(Arc<Active>);

#[derive(Debug, Default)]
struct Active {
    selection: Selection,
    /// For a selection by rows, on the devices of batches so far.
    on: Mutex<Vec<Arc<Rows>>>,
}

/// Rows of a batch by adapter, on a device.
#[derive(Debug)]
pub(crate) struct Rows {
    device: Device,
    /// Adapters, each once.
    names: Vec<String>,
    /// Number of the adapter of each row.
    own: Mutex<Vec<usize>>,
    /// How rows are sorted by adapter, once it is needed.
    sorted: OnceLock<Sorted>,
    /// Known masks of stacked updates: see [`kept`](Self::kept).
    masks: Mutex<Vec<Mask>>,
}

/// Stacked updates, each the number of its adapter and a rank, and their mask.
type Mask = (Vec<(usize, usize)>, Tensor<2>);

/// Rows sorted by adapter.
#[derive(Debug)]
struct Sorted {
    /// Each adapter with the indices of its rows; those without any are left out.
    groups: Vec<(String, Tensor<1, Int>)>,
    /// Position of each row of the batch in the concatenated groups.
    position: Tensor<1, Int>,
}

impl ActiveAdapters {
    /// Creates the adapters of a selection that the model has checked.
    pub(crate) fn new(selection: Selection) -> Self {
        Self(Arc::new(Active { selection, on: Mutex::default() }))
    }

    /// Selection that this was created from.
    pub fn selection(&self) -> &Selection {
        &self.0.selection
    }

    /// Names of the selection: for the whole batch, or one per row.
    pub(crate) fn names(&self) -> &[String] {
        let (Selection::Adapters(names) | Selection::Rows(names)) = &self.0.selection;
        names
    }

    /// Runs a part of a model that mixes the rows of a batch: with these adapters, or, if they are
    /// selected by rows, once for each adapter with its rows. The results are put in the order of the
    /// batch.
    ///
    /// # Panics
    /// If the batch has a different number of rows.
    pub fn each<const D: usize>(
        &self,
        x: Tensor<D>,
        mut run: impl FnMut(Tensor<D>, &Self) -> Tensor<D>,
    ) -> Tensor<D> {
        let Some(rows) = self.rows(x.dims()[0], &x.device()) else { return run(x, self) };
        rows.each(|names, indices| {
            let names = names.iter().filter(|name| *name != BASE);
            let active = Self::new(Selection::adapters(names));
            run(x.clone().select(0, indices.clone()), &active)
        })
    }

    /// Rows by adapter on a device, if the selection is by rows.
    ///
    /// # Panics
    /// If the batch has a different number of rows.
    pub(crate) fn rows(&self, batch: usize, device: &Device) -> Option<Arc<Rows>> {
        let Selection::Rows(rows) = &self.0.selection else { return None };
        assert_eq!(batch, rows.len(), "a batch of {batch} with adapters for {} rows", rows.len());
        let mut known = lock(&self.0.on);
        if let Some(rows) = known.iter().find(|rows| rows.device == *device) {
            return Some(rows.clone());
        }
        let rows = Arc::new(Rows::new(rows, device));
        known.push(rows.clone());
        Some(rows)
    }

    /// Gives each row another one of the adapters of this selection by rows, in place: what a device has
    /// [recorded](burn_lora_kernels::record()) with this selection reads the new one from then on. `None`, and nothing is
    /// changed, where that is impossible: another adapter, another number of rows, a device that does not record, or layers that
    /// sorted the rows by adapter.
    pub fn moved(&self, names: &[String]) -> Option<Self> {
        let Selection::Rows(old) = &self.0.selection else { return None };
        let mut known = lock(&self.0.on);
        let movable = |rows: &Arc<Rows>| {
            rows.sorted.get().is_none() && records(&rows.device) && rows.numbers(names).is_some()
        };
        if old.len() != names.len() || known.is_empty() || !known.iter().all(movable) {
            return None;
        }
        known.iter().for_each(|rows| rows.give(names));
        // They are the new selection's alone: this one would sort its rows anew.
        let on = Mutex::new(std::mem::take(&mut *known));
        Some(Self(Arc::new(Active { selection: Selection::rows(names), on })))
    }
}

impl PartialEq for ActiveAdapters {
    fn eq(&self, other: &Self) -> bool {
        self.selection() == other.selection()
    }
}

impl Eq for ActiveAdapters {}

impl Rows {
    fn new(rows: &[String], device: &Device) -> Self {
        let mut names: Vec<String> = vec![];
        let mut number = |name: &String| {
            let known = names.iter().position(|known| known == name);
            known.unwrap_or_else(|| {
                names.push(name.clone());
                names.len() - 1
            })
        };
        let own = rows.iter().map(&mut number).collect();
        Self {
            device: device.clone(),
            names,
            own: Mutex::new(own),
            sorted: OnceLock::new(),
            masks: Mutex::default(),
        }
    }

    /// Names of the adapters, each once.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.names.iter()
    }

    /// Runs each adapter on its rows and returns the results in the order of the batch.
    pub fn each<const D: usize>(
        &self,
        mut run: impl FnMut(&[String], &Tensor<1, Int>) -> Tensor<D>,
    ) -> Tensor<D> {
        let Sorted { groups, position } = self.sorted.get_or_init(|| self.sort());
        let parts = groups.iter().map(|(name, rows)| run(std::slice::from_ref(name), rows));
        Tensor::cat(parts.collect(), 0).select(0, position.clone())
    }

    fn sort(&self) -> Sorted {
        let index = |rows: Vec<i32>| {
            let shape = [rows.len()];
            Tensor::<1, Int>::from_data(TensorData::new(rows, shape), &self.device)
        };
        let own = lock(&self.own);
        let (mut groups, mut position, mut at) = (vec![], vec![0; own.len()], 0);
        for (number, name) in self.names.iter().enumerate() {
            let rows: Vec<_> = (0..own.len()).filter(|row| own[*row] == number).collect();
            for row in &rows {
                position[*row] = at;
                at += 1;
            }
            if !rows.is_empty() {
                groups
                    .push((name.clone(), index(rows.into_iter().map(|row| row as i32).collect())));
            }
        }
        Sorted { groups, position: index(position) }
    }

    /// Returns the mask of stacked updates, each the number of its adapter and a rank: 1 where a rank belongs to the row's adapter,
    /// 0 elsewhere, `[rows, ranks]` in float32.
    pub fn kept(&self, updates: &[(usize, usize)]) -> Tensor<2> {
        let mut known = lock(&self.masks);
        if let Some((_, mask)) = known.iter().find(|(other, _)| other == updates) {
            return mask.clone();
        }
        let mask = self.mask(updates);
        known.push((updates.to_vec(), mask.clone()));
        mask
    }

    fn mask(&self, updates: &[(usize, usize)]) -> Tensor<2> {
        let own = lock(&self.own);
        let ranks = || updates.iter().flat_map(|&(number, rank)| std::iter::repeat_n(number, rank));
        let kept = |kept: bool| if kept { 1.0f32 } else { 0.0 };
        let mask = own.iter().flat_map(|own| ranks().map(move |number| kept(number == *own)));
        let (mask, shape) = (mask.collect::<Vec<_>>(), [own.len(), ranks().count()]);
        // (A GPU pads the rows of a matrix from the host.)
        let flat = TensorData::new(mask, [shape[0] * shape[1]]);
        Tensor::<1>::from_data(flat, (&self.device, DType::F32)).reshape(shape)
    }

    /// The numbers of adapters, if all are among those of these rows.
    fn numbers(&self, names: &[String]) -> Option<Vec<usize>> {
        names.iter().map(|name| self.names.iter().position(|known| known == name)).collect()
    }

    /// Gives the rows these adapters, in place.
    fn give(&self, names: &[String]) {
        *lock(&self.own) = self.numbers(names).expect("adapters of these rows");
        for (updates, mask) in lock(&self.masks).iter_mut() {
            *mask = overwrite_float(mask.clone(), self.mask(updates));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
